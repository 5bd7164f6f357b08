"""What the Messages API answers with: Anthropic's objects, and the `vision_pruning` block that this server adds."""

from typing import Any, Literal

from pydantic import BaseModel

from covervlm.server.api.wire.chat_response import PruningReport

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class TextContent(BaseModel):
    type: Literal["text"]
    text: str


class ToolUseContent(BaseModel):
    """`input` is what can be read of the arguments where the answer was cut off."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class MessagesUsage(BaseModel):
    """Tokens that the language model really read and wrote: pruned vision tokens are not in `input_tokens`."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int


class MessagesAnswer(BaseModel):
    """The whole answer. `vision_pruning` is there where the request has images."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextContent | ToolUseContent]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessagesUsage
    vision_pruning: PruningReport | None = None


class TokenCount(BaseModel):
    """Of the prompt as the language model would read it, after pruning."""

    input_tokens: int
