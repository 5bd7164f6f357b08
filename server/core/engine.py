"""The Engine protocol: what a served model does, and what it tells about itself; and what only some engines have."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

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


@dataclass(frozen=True)
class EngineStats:
    """A moment's gauges and running totals, for /metrics."""

    running: int = 0
    waiting: int = 0
    cache_bytes: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    prefix_cache_bytes: int = 0


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
