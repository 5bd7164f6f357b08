"""What a chat completion answers with: OpenAI's objects, and the `vision_pruning` block that this server adds."""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel

from covervlm.server.agent import AgentReport
from covervlm.server.engines.base import FinishReason, ImageReport, PromptReport, TokenLogprob

UNLIKELY = -9999.0
"""OpenAI's stand-in for a log probability that is not finite, which JSON cannot spell."""


class TopLogprob(BaseModel):
    token: str
    bytes: list[int] | None
    logprob: float


class ContentLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    content: list[ContentLogprob]
    refusal: None

    @classmethod
    def of(cls, tokens: Sequence[TokenLogprob]) -> Self:
        content = [
            ContentLogprob(**_logprob(token), top_logprobs=[TopLogprob(**_logprob(other)) for other in token.top])
            for token in tokens
        ]
        return cls(content=content, refusal=None)


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class PromptTokensDetails(BaseModel):
    """`image_tokens` and `text_tokens` make up the prompt. `cached_tokens`: none, prompts are not cached."""

    cached_tokens: int
    image_tokens: int
    text_tokens: int


class Usage(BaseModel):
    """Tokens that the language model really read and wrote: pruned vision tokens are not in `prompt_tokens`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, prompt: PromptReport, completion_tokens: int) -> Self:
        image_tokens = sum(image.kept for image in prompt.images)
        return cls(
            prompt_tokens=prompt.prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt.prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=0, image_tokens=image_tokens, text_tokens=prompt.prompt_tokens - image_tokens
            ),
        )


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

    @classmethod
    def of(cls, report: ImageReport) -> Self:
        image = cls(
            total=report.total,
            kept=report.kept,
            method=report.method,
            coverage=report.coverage,
            milliseconds=round(report.milliseconds, 3),
        )
        if report.indices is not None:
            image.indices, image.grid, image.box = list(report.indices), report.grid, report.box
        return image


class PruningReport(BaseModel):
    """One entry per image in reading order, and the seconds that each stage before the first token took.

    `agent` is the first pass that guided the selection, where the request asked for one. `adaptive` is true where the
    server chose the budget by its load.
    """

    images: list[PrunedImage]
    seconds: dict[str, float]
    agent: AgentReport | None = None
    adaptive: bool = False

    @classmethod
    def of(
        cls, prompt: PromptReport, media_seconds: float, agent: AgentReport | None, *, adaptive: bool = False
    ) -> Self:
        seconds = {"media": media_seconds, **({"agent": agent.seconds} if agent else {}), **prompt.seconds}
        report = cls(
            images=[PrunedImage.of(image) for image in prompt.images],
            seconds={stage: round(value, 6) for stage, value in seconds.items()},
        )
        if agent is not None:
            report.agent = agent
        if adaptive:
            report.adaptive = True
        return report


class ChatCompletion(BaseModel):
    """The whole answer. `vision_pruning` is there where the request has images."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    vision_pruning: PruningReport | None = None


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: Logprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(BaseModel):
    """One event of a streamed answer. Fields that are not set are not sent.

    The first event of a request with images carries `vision_pruning`. With `include_usage` a last event without
    choices carries `usage`, which in all others is null, or what it is so far with `continuous_usage_stats`.
    """

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    vision_pruning: PruningReport | None = None


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


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    finite = token.logprob if token.logprob > UNLIKELY else UNLIKELY
    return {"token": token.token, "bytes": list(token.bytes), "logprob": finite}
