"""What the server's parts know of themselves, asked for when Prometheus asks."""

from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from covervlm.server.engines.base import Engine

if TYPE_CHECKING:
    from covervlm.server.clip.service import ClipService


class EngineCollector(Collector):
    """The engine's own gauges and totals."""

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine = engine
        self._model = model

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        engine, stats = self._engine, self._engine.stats()
        yield GaugeMetricFamily("covervlm_ready", "1 where the model would take a request.", float(engine.ready))
        if engine.ready:
            yield self._info()
        yield GaugeMetricFamily("covervlm_num_requests_running", "Requests being decoded.", stats.running)
        yield GaugeMetricFamily("covervlm_num_requests_waiting", "Requests waiting for a slot.", stats.waiting)
        yield GaugeMetricFamily("covervlm_feature_cache_bytes", "Memory of cached image features.", stats.cache_bytes)
        yield CounterMetricFamily("covervlm_feature_cache_hits", "Images found in the cache.", stats.cache_hits)
        yield CounterMetricFamily("covervlm_feature_cache_misses", "Images not in the cache.", stats.cache_misses)

    def _info(self) -> Metric:
        info = self._engine.info
        labels = {
            "version": version("covervlm"),
            "model": self._model,
            "engine": info.engine,
            "architecture": info.architecture,
            "dtype": info.dtype,
            "device": info.device,
        }
        family = GaugeMetricFamily("covervlm_info", "What is served, as labels; always 1.", labels=list(labels))
        family.add_metric(list(labels.values()), 1)
        return family


class ClipCollector(Collector):
    """Jobs and sessions of the CLIP service."""

    def __init__(self, clip: "ClipService") -> None:
        self._clip = clip

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        stats = self._clip.stats()
        jobs = GaugeMetricFamily("covervlm_jobs", "Jobs that the server keeps.", labels=["state"])
        for state, count in stats.jobs.items():
            jobs.add_metric([state], count)
        yield jobs
        yield GaugeMetricFamily("covervlm_sessions", "Zero-shot sessions that the server keeps.", stats.sessions)
