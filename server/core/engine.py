"""The Engine protocol: what a served model does, and what it tells about itself; and what only some engines have."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, Protocol, runtime_checkable

from covervlm.server.core.agreement import AnswerScores
from covervlm.server.core.caller import Caller
from covervlm.server.core.generation import GenerationChunk, GenerationRequest, PromptReport, PromptTokens


@dataclass(frozen=True)
class EngineInfo:
    """What the API tells about the served model. `vision_tokens` is an unpruned image's count, None if it varies.

    `methods` are the pruning methods that a request may name, in the order in which they are documented.
    `sampling` is what the checkpoint recommends, by the names of SamplingParams, for requests that do not say.
    `tool_format` is how its chat template writes calls of functions, None where it takes no functions.
    """

    engine: str
    architecture: str
    context_length: int
    vision_tokens: int | None
    dtype: str
    device: str
    methods: tuple[str, ...]
    sampling: Mapping[str, float] = field(default_factory=dict)
    tool_format: str | None = None


class Figure(NamedTuple):
    """How /metrics shows a number: its name after `covervlm_`, what it is, and whether it only ever grows."""

    name: str
    what: str
    total: bool = False


@dataclass(frozen=True)
class EngineStats:
    """A moment's gauges and running totals."""

    running: Annotated[int, Figure("num_requests_running", "Requests being decoded.")] = 0
    waiting: Annotated[int, Figure("num_requests_waiting", "Requests waiting for a slot.")] = 0
    cache_bytes: Annotated[int, Figure("feature_cache_bytes", "Memory of cached image features.")] = 0
    cache_hits: Annotated[int, Figure("feature_cache_hits", "Images found in the cache.", total=True)] = 0
    cache_misses: Annotated[int, Figure("feature_cache_misses", "Images not in the cache.", total=True)] = 0
    prefix_cache_bytes: Annotated[int, Figure("prefix_cache_bytes", "Memory of prompts kept for later turns.")] = 0


class Engine(Protocol):
    """A served model. Called on the event loop, `stats` in any thread; the engine does its work elsewhere."""

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

    async def score(self, request: GenerationRequest, answer: Sequence[int]) -> AnswerScores:
        """What the model, pruned as the request says, thinks of these tokens as its answer.

        Work that nobody waits for: it is done only while no request is in the engine or `expected`, makes way for one
        within a step, and changes nothing of what callers are told, the counts of cached tokens among it. Takes as long
        as that takes; cancelling ends it within a step. Raises as `generate` does. answer: token ids, one at least.
        """
        ...

    def expected(self) -> AbstractContextManager[None]:
        """While it is open, somebody waits for this process, if not yet for the engine: nothing is scored."""
        ...

    async def tokenize(self, request: GenerationRequest) -> PromptTokens:
        """The tokens that the model would read for this prompt, after pruning."""
        ...

    async def detokenize(self, ids: Sequence[int], caller: Caller) -> str:
        """The text of token ids, special tokens by their names. Raises InvalidRequest for ids that do not exist."""
        ...


@runtime_checkable
class HasVisionTower(Protocol):
    """An engine whose model lives in this process, so that a CLIP model can share the vision tower's weights."""

    @property
    def vision_tower(self) -> Any:
        """The loaded model's vision tower, a torch module; None where it has none of its own or is not loaded."""
        ...


@runtime_checkable
class ChecksImages(Protocol):
    """An engine that can tell from an image's size, before it is decoded, whether the model can take it."""

    def check_image(self, width: int, height: int) -> None:
        """Raises InvalidRequest for an image of a size that would become too large on its way to the model."""
        ...


@runtime_checkable
class HasMetrics(Protocol):
    """An engine with metrics of its own, as vLLM has; a collector in Prometheus's terms."""

    def collect(self) -> Iterable[Any]:
        """Prometheus metric families as of now; in any thread."""
        ...
