"""The body of OpenAI's Responses API, without its storage, and the chat that it stands for."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, Tag, model_validator

from covervlm.server.api.wire.as_chat import AsChat, Id, Name, Turns
from covervlm.server.api.wire.by_type import PARTS, TEXT, ByType, text_or_parts
from covervlm.server.api.wire.chat_request import MOST_MESSAGES, items
from covervlm.server.api.wire.chat_template import Effort
from covervlm.server.api.wire.sampling import Ignored, Text, Unless, Unsupported
from covervlm.server.api.wire.structure import JsonObjectFormat, TextFormat
from covervlm.server.core.pruning_policy import VisionPruning
from covervlm.server.core.wire import Wire, one_of

Metadata = Annotated[
    dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]], Field(max_length=16)
]
"""It comes back in the response."""
LOGPROBS = "message.output_text.logprobs"


class ResponsesText(Wire):
    type: Literal["input_text", "output_text"]
    text: Text
    annotations: Ignored = None
    logprobs: Ignored = None
    prompt_cache_breakpoint: Ignored = None


class ResponsesRefusal(Wire):
    type: Literal["refusal"]
    refusal: Text


class ResponsesImage(Wire):
    """`detail` is accepted and changes nothing."""

    type: Literal["input_image"]
    image_url: Text
    detail: Literal["auto", "low", "high", "original"] | None = None
    file_id: Unsupported = None
    prompt_cache_breakpoint: Ignored = None


Part = Annotated[ResponsesText | ResponsesRefusal | ResponsesImage, ByType("Content parts")]
Content = Annotated[
    Annotated[Text, TEXT] | Annotated[list[Part], items(MOST_MESSAGES), PARTS], text_or_parts("content parts")
]


def _put(
    turns: Turns, role: str, place: str, content: str | list[ResponsesText | ResponsesRefusal | ResponsesImage]
) -> None:
    if isinstance(content, str):
        return turns.begin(role, place, content=content)
    turns.begin(role, place)
    for i, part in enumerate(content):
        match part:
            case ResponsesImage():
                turns.image(part.image_url, f"{place}.content[{i}].image_url")
            case ResponsesText():
                turns.text(part.text)
            case ResponsesRefusal():
                turns.text(part.refusal)
    return None


class MessageItem(Wire):
    """A turn; an assistant's may come back as it was sent."""

    type: Literal["message", None] = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: Ignored = None
    status: Ignored = None
    phase: Ignored = None

    @model_validator(mode="after")
    def _images_from_users(self) -> Self:
        parts = [] if self.role == "user" or isinstance(self.content, str) else self.content
        if any(isinstance(part, ResponsesImage) for part in parts):
            raise ValueError("images are only accepted in messages of role 'user'")
        return self

    def put(self, turns: Turns, place: str) -> None:
        _put(turns, self.role, place, self.content)


class CallItem(Wire):
    type: Literal["function_call"]
    call_id: Id
    name: Name
    arguments: Text
    id: Ignored = None
    status: Ignored = None
    caller: Ignored = None
    namespace: Unsupported = None

    def put(self, turns: Turns, place: str) -> None:
        """Part of the assistant's turn before it, if that is one."""
        if not turns.messages or turns.messages[-1]["role"] != "assistant":
            turns.begin("assistant", place)
        turns.call(self.call_id, self.name, self.arguments)


class ResultItem(Wire):
    type: Literal["function_call_output"]
    call_id: Id
    output: Content
    id: Ignored = None
    name: Ignored = None
    status: Ignored = None
    caller: Ignored = None
    namespace: Unsupported = None

    def put(self, turns: Turns, place: str) -> None:
        """Images of a result are shown by the user: chats have them nowhere else."""
        parts = [] if isinstance(self.output, str) else self.output
        text = "\n".join(part.text for part in parts if isinstance(part, ResponsesText))
        said = self.output if isinstance(self.output, str) else text
        turns.begin("tool", place, content=said, tool_call_id=self.call_id)
        shown = [(i, part) for i, part in enumerate(parts) if isinstance(part, ResponsesImage)]
        if shown:
            turns.begin("user", place)
        for i, part in shown:
            turns.image(part.image_url, f"{place}.output[{i}].image_url")


class ReasoningItem(Wire):
    """What another model has thought in an earlier turn; nothing of the prompt."""

    type: Literal["reasoning"]
    id: Ignored = None
    summary: Ignored = None
    content: Ignored = None
    encrypted_content: Ignored = None
    status: Ignored = None

    def put(self, turns: Turns, place: str) -> None:
        pass


Item = Annotated[MessageItem | CallItem | ResultItem | ReasoningItem, ByType("Input items", default="message")]
Input = Annotated[
    Annotated[Text, TEXT] | Annotated[list[Item], items(MOST_MESSAGES), PARTS], text_or_parts("input items")
]


class ResponsesSchemaFormat(Wire):
    type: Literal["json_schema"]
    name: Text
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: Text | None = None
    strict: bool | None = None


class TextConfig(Wire):
    format: Annotated[TextFormat | JsonObjectFormat | ResponsesSchemaFormat, ByType("Text formats")] | None = None
    verbosity: Annotated[Any, Unless("medium")] = None


class ResponsesTool(Wire):
    """Strict unless it says otherwise."""

    type: Literal["function"]
    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    allowed_callers: Annotated[Any, Unless([], ["direct"])] = None
    defer_loading: Annotated[Any, Unless(False)] = None
    output_schema: Ignored = None


class ResponsesChoice(Wire):
    type: Literal["function"]
    name: Name


def _choice_tag(value: Any) -> str:
    return TEXT.tag if isinstance(value, str) else "<function>"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], TEXT]
    | Annotated[ResponsesChoice, ByType("Tool choices"), Tag("<function>")],
    one_of(_choice_tag, "'none', 'auto', 'required' or an object that names a function"),
]


class Reasoning(Wire):
    """How long to think, for a chat template that reads it; thoughts are never told apart from the answer."""

    effort: Effort | None = None
    context: Ignored = None
    generate_summary: Ignored = None
    mode: Annotated[Any, Unless("standard")] = None
    summary: Ignored = None


class ResponsesStreamOptions(Wire):
    include_obfuscation: Ignored = None


class ResponsesRequest(Wire):
    """A request for a response: OpenAI's fields, `vision_pruning`, and some of a chat's. Nothing is stored."""

    model: Text = ""
    input: Input
    instructions: Text | None = None
    vision_pruning: VisionPruning | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    text: TextConfig | None = None
    tools: Annotated[list[Annotated[ResponsesTool, ByType("Tools")]], items(128, 0)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    include: Annotated[list[Text], items(100, 0)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    reasoning: Reasoning | None = None
    stream: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    metadata: Metadata | None = None

    # vLLM's, for the tokens of prompt and answer, and llama.cpp's, for what they took.
    enable_response_messages: bool | None = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None

    # vLLM's extensions, which mean and allow what they do in a chat.
    chat_template_kwargs: dict[str, Any] | None = None
    frequency_penalty: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: Text | list[Text] | None = None
    top_k: int | None = None

    # Accepted for compatibility: they label or hint, and change no answer.
    max_tool_calls: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    store: Ignored = None  # true is OpenAI's default; the response says that it is not stored, as vLLM's does
    user: Ignored = None

    # Refused by name, except for values that ask for nothing.
    access_programs: Unsupported = None
    background: Annotated[Any, Unless(False)] = None
    background_options: Unsupported = None
    context_management: Annotated[Any, Unless([])] = None
    conversation: Unsupported = None
    image: Unsupported = None
    moderation: Unsupported = None
    previous_response_id: Unsupported = None
    prompt: Unsupported = None
    truncation: Annotated[Any, Unless("disabled")] = None

    _chat: AsChat = PrivateAttr()

    @property
    def chat(self) -> AsChat:
        return self._chat

    @property
    def logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    def model_post_init(self, _: Any) -> None:
        # Here, because bodies that take long are checked in a thread.
        turns = Turns()
        if self.instructions:
            turns.begin("system", "instructions", content=self.instructions)
        if isinstance(self.input, str):
            turns.begin("user", "input", content=self.input)
        else:
            for i, item in enumerate(self.input):
                item.put(turns, f"input[{i}]")
        functions = {f"tools[{i}].function": f"tools[{i}]" for i in range(len(self.tools or ()))}
        choice = self.tool_choice if self.tools or self.tool_choice not in ("auto", "none") else None
        self._chat = turns.chat(
            _NAMES | functions,
            model=self.model,
            vision_pruning=self.vision_pruning,
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            response_format=self._format(),
            tools=[_function(tool) for tool in self.tools or ()] or None,
            tool_choice={"type": "function", "function": {"name": choice.name}}
            if isinstance(choice, ResponsesChoice)
            else choice,
            parallel_tool_calls=self.parallel_tool_calls,
            reasoning_effort=self.reasoning and self.reasoning.effort,
            return_token_ids=self.enable_response_messages,
            logprobs=self.logprobs or None,
            top_logprobs=self.top_logprobs if self.logprobs else None,
            **{name: getattr(self, name) for name in _AS_IN_A_CHAT},
        )

    def _format(self) -> dict[str, Any] | None:
        form = self.text and self.text.format
        if not isinstance(form, ResponsesSchemaFormat):
            return form.model_dump(by_alias=True, exclude_none=True) if form else None
        named = form.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
        return {"type": "json_schema", "json_schema": named}


def _function(tool: ResponsesTool) -> dict[str, Any]:
    named = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": {**named, "strict": tool.strict is not False}}


_AS_IN_A_CHAT = (
    *("chat_template_kwargs", "frequency_penalty", "min_p", "presence_penalty", "repetition_penalty"),
    *("seed", "stop", "top_k"),
)
_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
    "tool_choice.function": "tool_choice",
}
