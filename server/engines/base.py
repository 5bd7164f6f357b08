"""The Engine protocol and the values that cross it: no HTTP on this side, no tensors on the other."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from PIL.Image import Image

FinishReason = Literal["stop", "length"]
Guide = Literal["last_user", "all_user", "first_user", "none", "agent"]


class EngineError(Exception):
    """Base of what an engine refuses or fails with; the message is written for the caller of the API."""


class InvalidRequest(EngineError):
    """The request can never be served as it stands; `param` names the offending field, `code` classifies it."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class EngineOverloaded(EngineError):
    """No room in the waiting queue; worth another try after `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineUnavailable(EngineError):
    """The engine is not started, is stopping, or has failed for good."""


@dataclass(frozen=True)
class TextPart:
    text: str


@dataclass(frozen=True, eq=False)
class ImagePart:
    """A checked RGB image; `digest` is the SHA-256 of its pixels and size, the key of every cache."""

    image: Image
    digest: str


@dataclass(frozen=True, eq=False)
class VideoPart:
    """A clip as checked RGB frames of one size, `fps` of them to a second; `digest` covers all frames and fps."""

    frames: tuple[Image, ...]
    digest: str
    fps: float = 2.0


@dataclass(frozen=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: tuple[TextPart | ImagePart | VideoPart, ...]

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))


@dataclass(frozen=True)
class PruningPolicy:
    """How many vision tokens to keep of each image, and by which method.

    At most one budget is set; with none, nothing is pruned. A tuple of `keep_tokens` holds one count per image.
    `coverage` asks for the smallest set that reaches this share of the full set's coverage, clipped to
    [min_tokens, max_tokens].
    """

    method: str = "mmtok"
    keep_tokens: int | tuple[int, ...] | None = None
    keep_ratio: float | None = None
    coverage: float | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    guide: Guide = "last_user"
    return_indices: bool = False

    @property
    def has_budget(self) -> bool:
        return any(budget is not None for budget in (self.keep_tokens, self.keep_ratio, self.coverage))

    @property
    def prunes(self) -> bool:
        return self.method != "none" and self.has_budget


@dataclass(frozen=True)
class SamplingParams:
    """Sampling of one answer, in vLLM's and OpenAI's terms; temperature 0 is greedy."""

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: bool = False
    top_logprobs: int = 0
    ignore_eos: bool = False


@dataclass(frozen=True)
class GenerationRequest:
    """One chat completion to run; images are inside the messages, in reading order.

    `hint` is an agent's answer, whose words guide the selection beside the question's where `guide` is "agent".
    `owner` is whom the request's turn counts for: owners are served in turn. None has the whole queue.
    """

    request_id: str
    messages: tuple[Message, ...]
    sampling: SamplingParams = SamplingParams()
    pruning: PruningPolicy = PruningPolicy()
    hint: str = ""
    owner: str | None = None

    @property
    def images(self) -> tuple[ImagePart | VideoPart, ...]:
        """Images and videos in reading order; a video counts as one image with one budget."""
        return tuple(p for message in self.messages for p in message.content if not isinstance(p, TextPart))

    def token_limit(self, prompt_tokens: int, context: int) -> int:
        """The most tokens that may be generated; InvalidRequest where a context of so many tokens is too short."""
        asked = self.sampling.max_tokens
        if prompt_tokens + (asked or 1) > context:
            wanted = f" and {asked} for the answer" if asked else ""
            raise InvalidRequest(
                f"This model's context is {context} tokens, but the prompt needs {prompt_tokens}{wanted}. "
                "Shorten the messages, lower max_tokens, or keep fewer vision tokens (vision_pruning.keep_tokens).",
                param="messages",
                code="context_length_exceeded",
            )
        return asked or context - prompt_tokens


@dataclass(frozen=True)
class ImageReport:
    """What pruning did to one image. `indices` count into the unpruned tokens, `grid` is (rows, columns).

    `box` is the area that the grid covers: (left, top, right, bottom) in pixels of the image, smaller than the image
    where the model crops it and larger where it pads. The three are there where `return_indices` asks for them.
    """

    total: int
    kept: int
    method: str
    coverage: float | None = None
    milliseconds: float = 0.0
    indices: tuple[int, ...] | None = None
    grid: tuple[int, int] | None = None
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class PromptReport:
    """Known once the prompt is prefilled: the language model's true prompt length, pruning, seconds per stage.

    Stages: `queue` (waiting for a slot), `preprocess`, `tower`, `selection`, `prefill`.
    """

    prompt_tokens: int
    images: tuple[ImageReport, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    cached_images: int = 0

    @property
    def method(self) -> str:
        """What pruned the images; "none" where all of them, if any, were left whole."""
        return next((image.method for image in self.images if image.method != "none"), "none")


@dataclass(frozen=True)
class TokenLogprob:
    """One generated token with its log probability; `top` holds the likeliest alternatives, best first."""

    token: str
    bytes: tuple[int, ...]
    logprob: float
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True)
class GenerationChunk:
    """The next piece of choice `index`: text of whole characters only, possibly empty.

    The first chunk of a request carries `prompt`. The last of each choice carries `finish_reason`.
    `tokens` is the number of tokens that this chunk stands for; they sum to the completion's token count.
    """

    index: int = 0
    text: str = ""
    tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    prompt: PromptReport | None = None


@dataclass(frozen=True)
class EngineInfo:
    """What the API tells about the served model. `vision_tokens` is an unpruned image's count, None if it varies.

    `methods` are the pruning methods that a request may name, in the order in which they are documented.
    """

    engine: str
    architecture: str
    context_length: int
    vision_tokens: int | None
    dtype: str
    device: str
    methods: tuple[str, ...]


@dataclass(frozen=True)
class EngineStats:
    """A moment's gauges and running totals, for /metrics."""

    running: int = 0
    waiting: int = 0
    cache_bytes: int = 0
    cache_hits: int = 0
    cache_misses: int = 0


class Engine(Protocol):
    """A served model. All methods are called on the event loop; the engine does its work elsewhere."""

    async def start(self) -> None:
        """Load and warm up; returns when the first request would run at full speed."""

    async def stop(self) -> None:
        """Refuse new requests, let running ones finish, free the model."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def ready(self) -> bool: ...

    def stats(self) -> EngineStats: ...

    def generate(self, request: GenerationRequest) -> AsyncIterator[GenerationChunk]:
        """Run one request; closing the iterator cancels it within one decoding step.

        Raises InvalidRequest, EngineOverloaded or EngineUnavailable before the first chunk.
        """
        ...

    async def prune(self, request: GenerationRequest) -> PromptReport:
        """Everything before prefill: encode the images and select, without generating."""
        ...
