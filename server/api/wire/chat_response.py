"""What a chat completion answers with: OpenAI's objects, and the `vision_pruning` block that this server adds."""

from typing import Literal

from pydantic import BaseModel

from covervlm.server.core.answer import EndReason
from covervlm.server.core.generation import AgentReport


class TopLogprob(BaseModel):
    token: str
    bytes: list[int] | None
    logprob: float


class ContentLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    content: list[ContentLogprob]
    refusal: None


class CalledFunction(BaseModel):
    """`arguments` is JSON, unless the model has strayed from it or was cut off."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class PromptLogprob(BaseModel):
    """One token in one place of the prompt; `rank` is 1 for the likeliest."""

    logprob: float
    rank: int
    decoded_token: str


class AssistantMessage(BaseModel):
    """`content` is null where there are calls alone."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] = []


class Choice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: Logprobs | None
    finish_reason: EndReason
    token_ids: list[int] | None = None


class PromptTokensDetails(BaseModel):
    """`image_tokens` and `text_tokens` make up the prompt. `cached_tokens`: known from an earlier prompt."""

    cached_tokens: int
    image_tokens: int
    text_tokens: int


class Usage(BaseModel):
    """Tokens that the language model really read and wrote: pruned vision tokens are not in `prompt_tokens`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class PrunedImage(BaseModel):
    """What became of one image's vision tokens; `indices`, and where they lie, only where asked for.

    `grid` is (rows, columns), `box` the area that it covers: (left, top, right, bottom) in pixels of the image.
    """

    total: int
    kept: int
    method: str
    coverage: float | None
    milliseconds: float
    indices: list[int] | None = None
    grid: tuple[int, int] | None = None
    box: tuple[float, float, float, float] | None = None


class PruningReport(BaseModel):
    """One entry per image in reading order, and the seconds that each stage before the first token took.

    `agent` is the first pass that guided the selection, where the request asked for one. `adaptive` is true where the
    server chose the budget by its load. `warnings` are there where the request probably does not do what was meant.
    """

    images: list[PrunedImage]
    seconds: dict[str, float]
    agent: AgentReport | None = None
    adaptive: bool = False
    warnings: list[str] = []


class ChatCompletion(BaseModel):
    """The whole answer. `vision_pruning` is there where the request has images.

    `prompt_logprobs` has an entry per token of the prompt, by token ids: the prompt's own token and the likeliest ones;
    it is null for the first token, before which there is nothing. It and the token ids are there where asked for.
    """

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    vision_pruning: PruningReport | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | None = None


class FunctionDelta(BaseModel):
    name: str | None = None
    arguments: str


class ToolCallDelta(BaseModel):
    """Call number `index` begins where there is an `id`; otherwise these are more of its arguments."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None
    tool_calls: list[ToolCallDelta] = []


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: Logprobs | None
    finish_reason: EndReason | None
    token_ids: list[int] | None = None


class ChatCompletionChunk(BaseModel):
    """One event of a streamed answer. Fields that are not set are not sent.

    The first event carries `vision_pruning` where the request has images, and `prompt_token_ids` where asked for. With
    `include_usage` a last event without choices carries `usage`, which in all others is null, or what it is so far with
    `continuous_usage_stats`.
    """

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    vision_pruning: PruningReport | None = None
    prompt_token_ids: list[int] | None = None


class PruneResponse(BaseModel):
    """What would be kept of each image, and the length of the prompt that the language model would read."""

    id: str
    object: Literal["vision_pruning"]
    created: int
    model: str
    prompt_tokens: int
    images: list[PrunedImage]
    seconds: dict[str, float]
    agent: AgentReport | None = None
    adaptive: bool = False
    warnings: list[str] = []
