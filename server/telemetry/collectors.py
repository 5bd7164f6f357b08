"""Figures that the server's parts keep of themselves, read whenever Prometheus scrapes."""

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Protocol, get_type_hints

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from covervlm.server.core.engine import Engine, EngineStats, Figure

_ENGINE: dict[str, Figure] = {
    field: hint.__metadata__[0] for field, hint in get_type_hints(EngineStats, include_extras=True).items()
}


class ClipFigures(Protocol):
    """Jobs that the server keeps, by state, and how many streams."""

    @property
    def jobs(self) -> Mapping[str, int]: ...

    @property
    def streams(self) -> int: ...


class HourFigures(Protocol):
    """An hour to come: its start in Unix time, and requests."""

    @property
    def start(self) -> int: ...

    @property
    def expected(self) -> float: ...

    @property
    def upper(self) -> float: ...


class ForecastFigures(Protocol):
    """What is foreseen of this hour and of the highest of the next day, and how many requests an hour are borne."""

    @property
    def now(self) -> HourFigures | None: ...

    @property
    def peak(self) -> HourFigures | None: ...

    @property
    def bearable(self) -> float | None: ...


class EngineCollector(Collector):
    """The engine's own gauges and totals."""

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine = engine
        self._model = model

    def collect(self) -> Iterator[Metric]:
        engine, stats = self._engine, self._engine.stats()
        yield GaugeMetricFamily("covervlm_ready", "1 if the model accepts requests, else 0.", float(engine.ready))
        if engine.ready:
            yield self._info()
        for field, figure in _ENGINE.items():
            family = CounterMetricFamily if figure.total else GaugeMetricFamily
            yield family(f"covervlm_{figure.name}", figure.what, getattr(stats, field))

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
    """Jobs and streams of the CLIP service."""

    def __init__(self, figures: Callable[[], ClipFigures]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        stats = self._figures()
        jobs = GaugeMetricFamily("covervlm_jobs", "Jobs that the server keeps.", labels=["state"])
        for state, count in stats.jobs.items():
            jobs.add_metric([state], count)
        yield jobs
        yield GaugeMetricFamily("covervlm_streams", "Streams of images that the server keeps.", stats.streams)


class ForecastCollector(Collector):
    """The outlook; what is not known yet has no samples."""

    def __init__(self, outlook: Callable[[], ForecastFigures]) -> None:
        self._outlook = outlook

    def collect(self) -> Iterator[Metric]:
        outlook = self._outlook()
        for name, what, hour in (
            ("requests", "Requests foreseen for this hour.", outlook.now),
            ("peak_requests", "Requests foreseen for the highest hour of the next day.", outlook.peak),
        ):
            family = GaugeMetricFamily(f"covervlm_forecast_{name}", what, labels=["bound"])
            if hour is not None:
                family.add_metric(["expected"], hour.expected)
                family.add_metric(["upper"], hour.upper)
            yield family
        start = None if outlook.peak is None else outlook.peak.start
        yield _if_known("covervlm_forecast_peak_start_seconds", "When that hour begins, in Unix time.", start)
        what = "Requests an hour from which on some had to wait in the past."
        yield _if_known("covervlm_bearable_requests", what, outlook.bearable)


def _if_known(name: str, what: str, value: float | None) -> Metric:
    family = GaugeMetricFamily(name, what, labels=[])
    if value is not None:
        family.add_metric([], value)
    return family
