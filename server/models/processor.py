"""The text of a request: chat messages to token ids, and the words of a question that guide a selection."""

import copy
import json
import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, ProcessorMixin

# Imported from its module: older releases of transformers refuse the public name where torchvision is missing.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import (
    NO_TOOLS,
    USUAL,
    Function,
    ImagePart,
    Message,
    Prompt,
    TemplateOptions,
    TextPrompt,
    ToolUse,
    VideoPart,
)
from covervlm.server.models.clip_text import NO_VIDEOS, ClipText
from covervlm.server.models.template import ChatTemplate
from covervlm.server.tools.prompt import definitions, introduced, spelled_out

CHARACTERS_PER_TOKEN = 16
"""More than any text has on average: English has about 4, and the longest words of vocabularies about 16."""
_PIECE = 2**14
_WORD = re.compile(r"\b\w+\b")
_ANSWER_FORMATS = (
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
)
_STOPPED = """
a an the is are was were be been being have has had do does did
it they he she we you i what where when why how who which
and or but so if then question answer
to for with by from at into onto upon
"""
_STOP_WORDS = frozenset(_STOPPED.split())


@dataclass
class Processor:
    """A checkpoint's tokenizer, image processor and chat template.

    transformers' own processors of models that read videos cannot be built without torchvision.
    """

    tokenizer: PreTrainedTokenizerBase
    image_processor: Any
    chat_template: str | None = None

    @classmethod
    def load(cls, path: Any) -> "Processor":
        """From a folder or the hub, none of whose code is run."""
        template = ProcessorMixin.get_processor_dict(path)[0].get("chat_template")
        return cls(
            AutoTokenizer.from_pretrained(path, trust_remote_code=False),
            # Pillow's pixels rather than torchvision's: the same on every machine, and of a known cost.
            AutoImageProcessor.from_pretrained(path, trust_remote_code=False, backend="pil"),
            template if isinstance(template, str) else None,
        )

    def apply_chat_template(self, chat: list[dict[str, Any]], **options: Any) -> Any:
        return self.tokenizer.apply_chat_template(chat, chat_template=self.chat_template, **options)


class ChatProcessor:
    """A checkpoint's processor, safe to call from several threads: processors and tokenizers keep mutable state."""

    def __init__(self, processor: Any, placeholders: Mapping[str, int], clip_text: ClipText | None = None) -> None:
        """placeholders: the tokens that stand for an image or a video in the prompt's text, with their ids.

        clip_text: how clips are spelled, where a placeholder of the chat template is not all of it.
        """
        self._prototype = processor
        self._clip_text = clip_text
        self._copies = threading.local()
        self._copying = threading.Lock()
        self.placeholders = dict(placeholders)
        self.joins_words = _joins_words(self.tokenizer)

    @property
    def processor(self) -> Any:
        """This thread's own copy of the processor."""
        if not hasattr(self._copies, "processor"):
            with self._copying:
                self._copies.processor = copy.deepcopy(self._prototype)
        return self._copies.processor

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.processor.tokenizer

    @property
    def image_processor(self) -> Any:
        return self.processor.image_processor

    @cached_property
    def template(self) -> ChatTemplate:
        """What the chat template has a place for."""
        return ChatTemplate.tried(
            lambda messages, functions, answers: self._apply(messages, functions, TemplateOptions(answers))
        )

    def tokenize(
        self,
        prompt: Prompt,
        context: float = math.inf,
        options: TemplateOptions = USUAL,
        tools: ToolUse = NO_TOOLS,
    ) -> tuple[int, ...]:
        """A text's ids; or a chat's, which hold one placeholder per image or video, or moment, in reading order.

        context: the most tokens that the model reads. tools: the functions to describe, and the form of calls where the
        template has no place for them.

        Raises InvalidRequest where the text is far beyond the context, or the template refuses the messages.
        """
        if isinstance(prompt, TextPrompt):
            return self._tokenize_text(prompt, context)
        return self._tokenize_chat(prompt, context, options, tools)

    def names(self, ids: Sequence[int]) -> tuple[str, ...]:
        """The tokenizer's own names for tokens."""
        return tuple(self.tokenizer.convert_ids_to_tokens(list(ids)))

    def detokenize(self, ids: Sequence[int], context: float = math.inf) -> str:
        """The text of tokens, special ones by their names. Raises InvalidRequest."""
        self._check_ids(ids, context, "tokens")
        return str(self.tokenizer.decode(list(ids)))

    def _tokenize_text(self, prompt: TextPrompt, context: float) -> tuple[int, ...]:
        tokenizer, content = self.tokenizer, prompt.content
        if isinstance(content, str):
            if len(content) > CHARACTERS_PER_TOKEN * context:
                raise _too_long(context, "prompt")
            _check_length(tokenizer, content, context, "prompt")
            ids = tuple(tokenizer(self._escaped(content), add_special_tokens=prompt.special_tokens).input_ids)
        else:
            self._check_ids(content, context, "prompt")
            ids = content
        if prompt.limit is not None:
            ids = ids[: prompt.limit] if prompt.from_start else ids[-prompt.limit :]
        if not ids:
            raise InvalidRequest("There is nothing in this prompt for the model to read.", param="prompt")
        if self.slots(ids):
            message = "A text prompt has no images, but this one holds their placeholder; send images in a chat."
            raise InvalidRequest(message, param="prompt", code="invalid_value")
        return ids

    def _check_ids(self, ids: Sequence[int], context: float, param: str) -> None:
        if len(ids) > 2 * context:
            raise _too_long(context, param)
        size = len(self.tokenizer)
        if unknown := [token for token in ids if not 0 <= token < size]:
            message = f"There is no token {unknown[0]}: this model's tokenizer has {size}."
            raise InvalidRequest(message, param=param, code="invalid_value")

    def _tokenize_chat(
        self, messages: Sequence[Message], context: float, options: TemplateOptions, tools: ToolUse
    ) -> tuple[int, ...]:
        if sum(map(_characters, messages)) + len(str(tools.functions)) > CHARACTERS_PER_TOKEN * context:
            raise _too_long(context, "messages")
        pictures = [part for message in messages for part in message.content if not isinstance(part, str)]
        clips = [part for part in pictures if isinstance(part, VideoPart)]
        images, further = len(pictures), 0
        text = self._render(messages, options, tools)
        if clips and self._clip_text is not None:
            text, further = self._clip_text.told(text, clips)
        tokenizer = self.tokenizer
        _check_length(tokenizer, text, context, "messages")
        starts_itself = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        ids = tuple(tokenizer(text, add_special_tokens=options.special_tokens or not starts_itself).input_ids)
        written = len(self.slots(ids)) - further
        if written != images and written == sum(isinstance(part, ImagePart) for part in pictures):
            raise InvalidRequest(NO_VIDEOS, param="messages")
        if written != images:
            names = " or ".join(self.placeholders)
            raise InvalidRequest(
                f"The prompt has {written} times {names} for {images} images or videos: the chat template must write "
                "one for each, and texts may not combine into one.",
                param="messages",
            )
        return ids

    def slots(self, ids: Sequence[int]) -> list[int]:
        """Where placeholders stand in a tokenised chat."""
        return [i for i, token in enumerate(ids) if token in self.placeholders.values()]

    def as_written(self, ids: Sequence[int], parts: Sequence[ImagePart | VideoPart]) -> list[int]:
        """The order in which a tokenised chat has its pictures and clips, of which the request's is `parts`.

        A chat template may write a message's pictures first and its clips then, as LLaVA-OneVision's published one.
        """
        clips = [isinstance(part, VideoPart) for part in parts]
        image = next(iter(self.placeholders.values()))
        written = [ids[slot] != image for slot in self.slots(ids)]
        if self._clip_text is not None or sorted(written) != sorted(clips):
            return list(range(len(parts)))
        waiting = {kind: iter([i for i, clip in enumerate(clips) if clip == kind]) for kind in (False, True)}
        return [next(waiting[kind]) for kind in written]

    def word_ids(self, words: Sequence[str]) -> list[int]:
        """Token ids of words as they stand inside a sentence, without BOS.

        Pre-split words say just that to SentencePiece-style tokenizers. A byte-level one that adds no space before
        the first word would spell pre-split words as if each opened a text, so there each gets its space.
        """
        if not words:
            return []
        tokenizer = self.tokenizer
        if self.joins_words:
            return tokenizer(list(words), is_split_into_words=True, add_special_tokens=False).input_ids
        return tokenizer("".join(f" {word}" for word in words), add_special_tokens=False).input_ids

    def raw_ids(self, words: Sequence[str]) -> list[int]:
        """Token ids of words each of which opens a text, without BOS."""
        tokenizer = self.tokenizer
        return [token for word in words for token in tokenizer(word, add_special_tokens=False).input_ids]

    def _escaped(self, text: str) -> str:
        """The text with placeholders broken up: in histories from other clients they stand for no image here."""
        for placeholder in self.placeholders:
            text = text.replace(placeholder, f"{placeholder[:1]} {placeholder[1:]}")
        return text

    def _render(self, messages: Sequence[Message], options: TemplateOptions, tools: ToolUse) -> str:
        last = messages[-1]
        if options.continue_final_message and (last.tool_calls or not _said(last)):
            raise InvalidRequest(
                "Only a last message that ends with a text can be continued.",
                param="continue_final_message",
                code="invalid_value",
            )
        template, functions, given = self.template, tools.functions, messages
        if not template.calls and any(message.tool_calls or message.role == "tool" for message in messages):
            messages = spelled_out(messages, tools.format)
        if functions and not template.functions:
            messages, functions = introduced(messages, tools, as_system=template.system), ()
        try:
            return self._apply(messages, functions, options)
        except Exception as error:
            # Templates speak through jinja's raise_exception, e.g. about the order of roles, or fail at what they read.
            place = _odd_arguments(given)
            hint = "" if place is None else f"; '{place}' should be an object in JSON"
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {str(error)[:1000]}{hint}",
                param=place or "messages",
            ) from error

    def _apply(self, messages: Sequence[Message], functions: Sequence[Function], options: TemplateOptions) -> str:
        chat = [self._turn(message) for message in messages]
        tools = None
        if functions:
            tools = json.loads(self._escaped(json.dumps(definitions(functions), ensure_ascii=False)))
        text: str = self.processor.apply_chat_template(
            chat,
            tools=tools,
            add_generation_prompt=options.add_generation_prompt,
            continue_final_message=options.continue_final_message,
            tokenize=False,
            **{name: value for name, value in options.variables.items() if self._reads(name)},
        )
        return text

    def _reads(self, variable: str) -> bool:
        """Whether the chat template has this word; variables of other models' templates change nothing, as in vLLM."""
        template = getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template
        return bool(re.search(rf"\b{re.escape(variable)}\b", str(template)))

    def _turn(self, message: Message) -> dict[str, Any]:
        turn: dict[str, Any] = {
            "role": message.role,
            "content": [
                {"type": "text", "text": self._escaped(part)}
                if isinstance(part, str)
                else {"type": "image" if isinstance(part, ImagePart) else "video"}
                for part in message.content
            ],
        }
        if message.tool_calls:
            if not message.text:
                turn["content"] = ""  # templates put a line break between text and calls
            turn["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": _read(self._escaped(call.arguments))},
                }
                for call in message.tool_calls
            ]
        if message.tool_call_id is not None:
            turn["tool_call_id"] = message.tool_call_id
        return turn


def _said(message: Message) -> str:
    """The text that a message ends with, if it does."""
    last = message.content[-1]
    return last.strip() if isinstance(last, str) else ""


def _characters(message: Message) -> int:
    return len(message.text) + sum(len(call.name) + len(call.arguments) for call in message.tool_calls)


def _read(arguments: str) -> Any:
    """Arguments as an object, which templates write as JSON again; unchanged where they are not JSON in UTF-8."""
    try:
        read = json.loads(arguments)
        json.dumps(read, ensure_ascii=False).encode()
    except (ValueError, RecursionError):  # half a surrogate pair among them, which no tokenizer takes
        return arguments
    return read


def _odd_arguments(messages: Sequence[Message]) -> str | None:
    """Where a call has arguments that are no object, which many templates cannot write."""
    for i, message in enumerate(messages):
        for j, call in enumerate(message.tool_calls):
            if not isinstance(_read(call.arguments), dict):
                return f"messages[{i}].tool_calls[{j}].function.arguments"
    return None


def _check_length(tokenizer: PreTrainedTokenizerBase, text: str, context: float, param: str) -> None:
    """Count a long text piece by piece: tokens take a thousand times the memory of their characters."""
    if len(text) <= context:
        return
    tokens = 0
    for start in range(0, len(text), _PIECE):
        piece = text[start : start + _PIECE]
        tokens += len(tokenizer(piece, add_special_tokens=False, verbose=False).input_ids)
        if tokens > 2 * context:  # twice, because cutting a text adds tokens
            raise _too_long(context, param)


def _too_long(context: float, param: str) -> InvalidRequest:
    message = f"This model's context is {context} tokens, and '{param}' is far longer. Shorten it."
    return InvalidRequest(message, param=param, code="context_length_exceeded")


def _joins_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether pre-split words get the same ids as the words of a running text."""
    split = tokenizer(["a", "red", "bus"], is_split_into_words=True, add_special_tokens=False).input_ids
    return split == tokenizer("a red bus", add_special_tokens=False).input_ids


def all_words(text: str) -> list[str]:
    """Every word of `text` in order: runs of letters, digits and underscores."""
    return _WORD.findall(text)


def visual_words(question: str) -> list[str]:
    """The words of `question` that can name something visible, in order, their case kept, as MMTok's release has them.

    The two fixed instructions of the VQA benchmarks and the stop words are left out. If nothing else is there, the
    text's own whitespace-separated words are returned; none for an empty text. Image placeholders are not recognised:
    pass the text without them.
    """
    for instruction in _ANSWER_FORMATS:
        question = question.replace(instruction, "")
    words = [word for word in all_words(question) if word.lower() not in _STOP_WORDS]
    return words or question.split()
