"""Chat messages to token ids with transformers' own processor, one private copy per thread."""

import copy
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from covervlm.server.engines.base import ImagePart, InvalidRequest, Message, TextPart
from covervlm.server.models.base import Prompt


class ChatProcessor:
    """A checkpoint's processor, safe to call from several threads: processors and tokenizers keep mutable state."""

    def __init__(self, processor: Any, placeholders: Mapping[str, int]) -> None:
        """placeholders: the tokens that stand for an image or a video in the prompt's text, with their ids."""
        self._prototype = processor
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

    def tokenize(self, messages: Sequence[Message]) -> Prompt:
        """Apply the chat template; the prompt holds one placeholder id per image or video.

        Raises InvalidRequest where text holds the placeholder itself, or the template refuses the messages.
        """
        for message in messages:
            for placeholder in self.placeholders:
                if placeholder in message.text:
                    raise InvalidRequest(
                        f"The text contains {placeholder!r}, which stands for an image or video in this model's "
                        "prompt. Send images as image_url parts and leave the placeholder out of the text.",
                        param="messages",
                    )
        text = self._render(messages)
        tokenizer = self.tokenizer
        starts_itself = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        ids = tokenizer(text, add_special_tokens=not starts_itself).input_ids
        slots = tuple(i for i, token in enumerate(ids) if token in self.placeholders.values())
        return Prompt(ids=tuple(ids), image_slots=slots)

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

    def _render(self, messages: Sequence[Message]) -> str:
        chat = [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part.text}
                    if isinstance(part, TextPart)
                    else {"type": "image" if isinstance(part, ImagePart) else "video"}
                    for part in message.content
                ],
            }
            for message in messages
        ]
        try:
            return self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        except Exception as error:
            # Templates speak through jinja's raise_exception, e.g. about the order of roles.
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {error}", param="messages"
            ) from error


def _joins_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether pre-split words get the same ids as the words of a running text."""
    split = tokenizer(["a", "red", "bus"], is_split_into_words=True, add_special_tokens=False).input_ids
    return split == tokenizer("a red bus", add_special_tokens=False).input_ids
