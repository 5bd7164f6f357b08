"""The body of Anthropic's Messages API, and the chat that it stands for."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from covervlm.server.api.wire.as_chat import AsChat, Id, Name, Turns
from covervlm.server.api.wire.by_type import PARTS, TEXT, ByType, text_or_parts
from covervlm.server.api.wire.chat_request import MOST_MESSAGES, items
from covervlm.server.api.wire.sampling import Ignored, Text, Unless, Unsupported
from covervlm.server.core.pruning_policy import VisionPruning
from covervlm.server.core.wire import Wire


class TextBlock(Wire):
    type: Literal["text"]
    text: Text
    cache_control: Ignored = None
    citations: Annotated[Any, Unless([])] = None


class Base64Source(Wire):
    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: Text


class UrlSource(Wire):
    type: Literal["url"]
    url: Text


class ImageBlock(Wire):
    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource, ByType("Images")]
    cache_control: Ignored = None
    transformations: Unsupported = None

    def put(self, turns: Turns, place: str) -> None:
        match self.source:
            case Base64Source(media_type=kind, data=data):
                turns.image(f"data:{kind};base64,{data}", f"{place}.source.data")
            case UrlSource(url=url):
                turns.image(url, f"{place}.source.url")


class ToolUseBlock(Wire):
    type: Literal["tool_use"]
    id: Id
    name: Name
    input: dict[str, Any]
    cache_control: Ignored = None
    caller: Ignored = None
    toolset_name: Ignored = None


ResultContent = Annotated[
    Annotated[Text, TEXT]
    | Annotated[
        list[Annotated[TextBlock | ImageBlock, ByType("Content blocks of results")]], items(MOST_MESSAGES, 0), PARTS
    ],
    text_or_parts("content blocks"),
]


class ToolResultBlock(Wire):
    """`is_error` changes nothing: the model reads what the content says of it."""

    type: Literal["tool_result"]
    tool_use_id: Id
    content: ResultContent = ""
    is_error: Ignored = None
    cache_control: Ignored = None
    toolset_name: Ignored = None

    @property
    def blocks(self) -> Sequence[TextBlock | ImageBlock]:
        return [TextBlock(type="text", text=self.content)] if isinstance(self.content, str) else self.content


class ThinkingBlock(Wire):
    """What another model has thought in an earlier turn; nothing of the prompt."""

    type: Literal["thinking", "redacted_thinking"]
    thinking: Ignored = None
    signature: Ignored = None
    data: Ignored = None


Block = Annotated[TextBlock | ImageBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock, ByType("Content blocks")]
Content = Annotated[
    Annotated[Text, TEXT] | Annotated[list[Block], items(MOST_MESSAGES), PARTS], text_or_parts("content blocks")
]
System = Annotated[
    Annotated[Text, TEXT]
    | Annotated[list[Annotated[TextBlock, ByType("System blocks")]], items(MOST_MESSAGES, 0), PARTS],
    text_or_parts("text blocks"),
]
_OF_ROLE = {
    "tool_use": "assistant",
    "thinking": "assistant",
    "redacted_thinking": "assistant",
    "tool_result": "user",
    "image": "user",
}


class InputMessage(Wire):
    role: Literal["user", "assistant", "system"]
    content: Content

    @model_validator(mode="after")
    def _blocks_of_the_role(self) -> Self:
        for block in self.content if not isinstance(self.content, str) else []:
            if _OF_ROLE.get(block.type, self.role) != self.role:
                raise ValueError(f"blocks of type '{block.type}' are no part of messages of role '{self.role}'")
        return self

    def put(self, turns: Turns, place: str) -> None:
        """Results first, each a turn of its own; images of theirs come with what the user says."""
        if isinstance(self.content, str):
            return turns.begin(self.role, place, content=self.content)
        shown: list[tuple[str, TextBlock | ImageBlock | ToolUseBlock | ThinkingBlock]] = []
        for i, block in enumerate(self.content):
            if isinstance(block, ToolResultBlock):
                inside = [(f"{place}.content[{i}].content[{j}]", part) for j, part in enumerate(block.blocks)]
                texts = [part.text for _, part in inside if isinstance(part, TextBlock)]
                turns.begin("tool", f"{place}.content[{i}]", content="\n".join(texts), tool_call_id=block.tool_use_id)
                shown += [(where, part) for where, part in inside if isinstance(part, ImageBlock)]
            else:
                shown.append((f"{place}.content[{i}]", block))
        if shown:
            turns.begin(self.role, place)
        for where, block in shown:
            match block:
                case TextBlock():
                    turns.text(block.text)
                case ImageBlock():
                    block.put(turns, where)
                case ToolUseBlock():
                    turns.call(block.id, block.name, json.dumps(block.input, ensure_ascii=False))
        return None


class MessagesTool(Wire):
    """A function of the caller's; `input_schema` is a JSON schema of an object."""

    type: Literal["custom", None] = None
    name: Name
    description: Text | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: Ignored = None
    eager_input_streaming: Ignored = None
    allowed_callers: Annotated[Any, Unless([], ["direct"])] = None
    defer_loading: Annotated[Any, Unless(False)] = None
    input_examples: Annotated[Any, Unless([])] = None

    @property
    def function(self) -> dict[str, Any]:
        named = {"name": self.name, "description": self.description, "parameters": self.input_schema}
        return {"type": "function", "function": {**named, "strict": self.strict}}


class MessagesToolChoice(Wire):
    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _names_a_tool(self) -> Self:
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("needs a 'name' where 'type' is 'tool', and has none otherwise")
        return self

    @property
    def choice(self) -> Any:
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return "required" if self.type == "any" else self.type


class JsonFormat(Wire):
    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Wire):
    format: JsonFormat | None = None
    effort: Annotated[Any, Unless("high")] = None


class CountTokensRequest(Wire):
    """What of a request becomes its prompt: Anthropic's fields, and `vision_pruning`."""

    model: Text = ""
    messages: Annotated[list[InputMessage], items(MOST_MESSAGES)]
    system: System | None = None
    tools: Annotated[list[Annotated[MessagesTool, ByType("Tools", default="custom")]], items(128, 0)] | None = None
    tool_choice: MessagesToolChoice | None = None
    output_config: OutputConfig | None = None
    vision_pruning: VisionPruning | None = None

    # Accepted for compatibility: they label or hint, and change no answer.
    cache_control: Ignored = None
    thinking: Ignored = None
    user_profile_id: Ignored = None
    workspace_id: Ignored = None

    # Refused by name, except for values that ask for nothing.
    speed: Annotated[Any, Unless("standard")] = None

    _chat: AsChat = PrivateAttr()

    @property
    def chat(self) -> AsChat:
        return self._chat

    def model_post_init(self, _: Any) -> None:
        # Here, because bodies that take long are checked in a thread.
        turns = Turns()
        if self.system:
            turns.begin("system", "system", content=self.system if isinstance(self.system, str) else [])
            for block in self.system if not isinstance(self.system, str) else []:
                turns.text(block.text)
        for i, message in enumerate(self.messages):
            message.put(turns, f"messages[{i}]")
        names = _NAMES | {f"tools[{i}].function": f"tools[{i}]" for i in range(len(self.tools or ()))}
        names |= {f"{old}.parameters": f"{new}.input_schema" for old, new in names.items() if old.endswith("function")}
        self._chat = turns.chat(names, **self._fields())

    def _fields(self) -> dict[str, Any]:
        """The chat's, beside its messages."""
        choice, config = self.tool_choice, self.output_config
        form = None if config is None or config.format is None else {"name": "answer", "schema": config.format.schema_}
        return {
            "model": self.model,
            "vision_pruning": self.vision_pruning,
            "tools": [tool.function for tool in self.tools or ()] or None,
            "tool_choice": choice and choice.choice,
            "parallel_tool_calls": False if choice and choice.disable_parallel_tool_use else None,
            "response_format": form and {"type": "json_schema", "json_schema": {**form, "strict": True}},
            # An answer of which the caller knows the beginning.
            "continue_final_message": True if self.messages[-1].role == "assistant" else None,
        }


class MessagesRequest(CountTokensRequest):
    """A request for a message: Anthropic's fields, older ones among them, and `vision_pruning`."""

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: list[Text] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stream: bool | None = None

    metadata: Ignored = None
    service_tier: Ignored = None

    container: Unsupported = None
    context_management: Annotated[Any, Unless({})] = None
    diagnostics: Unsupported = None
    inference_geo: Annotated[Any, Unless("global")] = None
    mcp_servers: Annotated[Any, Unless([])] = None

    def _fields(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("max_tokens", "temperature", "top_p", "top_k")}
        return {**super()._fields(), **own, "stop": self.stop_sequences}


_NAMES = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "response_format.json_schema.schema": "output_config.format.schema",
    "tool_choice.function.name": "tool_choice.name",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "continue_final_message": "messages",
}
