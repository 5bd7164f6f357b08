"""What the Responses API answers with: OpenAI's objects, and the `vision_pruning` block that this server adds."""

from typing import Any, Literal

from pydantic import BaseModel

from covervlm.server.api.wire.chat_response import ContentLogprob, PruningReport

Status = Literal["in_progress", "completed", "incomplete", "failed"]
ErrorCode = Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]


class OutputText(BaseModel):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ContentLogprob] = []


class OutputMessage(BaseModel):
    type: Literal["message"]
    id: str
    role: Literal["assistant"]
    status: Status
    content: list[OutputText]


class OutputCall(BaseModel):
    """`arguments` is JSON, unless the model has strayed from it or was cut off."""

    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


class InputTokensDetails(BaseModel):
    """None: prompts are not cached."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int


class ResponsesUsage(BaseModel):
    """Tokens that the language model really read and wrote: pruned vision tokens are not in `input_tokens`."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponsesError(BaseModel):
    code: ErrorCode
    message: str


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"]


class RawMessage(BaseModel):
    """vLLM's: tokens as the model read or wrote them, and what they spell, special ones by their names."""

    type: Literal["raw_message_tokens"] = "raw_message_tokens"
    message: str
    tokens: list[int]


class ResponsesAnswer(BaseModel):
    """The whole answer, with what it was asked for. `vision_pruning` is there where the request has images.

    `input_messages` and `output_messages` are there where `enable_response_messages` asks for them.
    """

    id: str
    object: Literal["response"] = "response"
    created_at: int
    model: str
    status: Status = "in_progress"
    error: ResponsesError | None = None
    incomplete_details: IncompleteDetails | None = None
    output: list[OutputMessage | OutputCall] = []
    usage: ResponsesUsage | None = None
    vision_pruning: PruningReport | None = None
    input_messages: list[RawMessage] | None = None
    output_messages: list[RawMessage] | None = None

    instructions: str | None
    max_output_tokens: int | None
    temperature: float
    top_p: float
    top_logprobs: int
    text: dict[str, Any]
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    metadata: dict[str, Any]
    reasoning: dict[str, Any] | None
    background: Literal[False] = False
    previous_response_id: None = None
    store: Literal[False] = False
    truncation: Literal["disabled"] = "disabled"
