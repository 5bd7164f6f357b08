"""What vLLM knows of itself: its scheduler's last figures, the plugin's cache, its own metrics."""

import asyncio
import contextlib
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

from prometheus_client.metrics_core import Metric
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.prometheus import get_prometheus_registry
from vllm.v1.metrics.stats import SchedulerStats

from covervlm.server.core.engine import EngineStats
from covervlm.server.engines.vllm.workers import every_worker


class Figures:
    """Collected while vLLM runs; they can be read in any thread, without waiting."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """loop: where vLLM runs."""
        self._loop = loop
        self._scheduler: dict[int, SchedulerStats] = {}
        self._cache = (0, 0, 0)
        self._asking: Future[None] | None = None

    def logger(self, _: Any, engine_index: int = 0) -> StatLoggerBase:
        """A stat logger for one of vLLM's engines."""
        return _SchedulerWatch(self._scheduler, engine_index)

    def stats(self, llm: AsyncLLM) -> EngineStats:
        """The scheduler's figures are those of its last step, the cache's those that the previous call asked for."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.run_coroutine_threadsafe(self._read_cache(llm), self._loop)
        stats = list(self._scheduler.values())
        held, hits, misses = self._cache
        return EngineStats(
            running=sum(entry.num_running_reqs for entry in stats),
            waiting=sum(entry.num_waiting_reqs for entry in stats),
            cache_bytes=held,
            cache_hits=hits,
            cache_misses=misses,
        )

    def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    async def _read_cache(self, llm: AsyncLLM) -> None:
        with contextlib.suppress(EngineDeadError):
            figures = await every_worker(llm, "covervlm_cache")
            self._cache = tuple(sum(column) for column in zip(*figures, strict=True))


def vllm_metrics() -> Iterable[Metric]:
    """vLLM's own metrics, as its server would show them."""
    return (metric for metric in get_prometheus_registry().collect() if metric.name.startswith("vllm:"))


class _SchedulerWatch(StatLoggerBase):
    """Keeps the scheduler's last figures of one engine."""

    def __init__(self, latest: dict[int, SchedulerStats], engine_index: int) -> None:
        self._latest, self._index = latest, engine_index

    def record(self, scheduler_stats: SchedulerStats | None, iteration_stats: Any, *_: Any, **__: Any) -> None:
        if scheduler_stats is not None:
            self._latest[self._index] = scheduler_stats

    def log_engine_initialized(self) -> None:
        pass
