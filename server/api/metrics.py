"""What the server measures, for Prometheus; names follow vLLM's where it measures the same thing."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from covervlm.server.agent import AgentReport
from covervlm.server.engines.base import Engine, GenerationChunk, PromptReport

STAGE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
REQUEST_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)


class Metrics:
    """The counters and histograms of one app, in a registry of their own."""

    def __init__(self, engine: Engine) -> None:
        self.registry = registry = CollectorRegistry()
        self.http_requests = Counter(
            "covervlm_http_requests", "Answered HTTP requests.", ["route", "status"], registry=registry
        )
        self.http_in_flight = Gauge(
            "covervlm_http_requests_in_flight", "HTTP requests being answered.", registry=registry
        )
        self.time_to_first_token = Histogram(
            "covervlm_time_to_first_token_seconds",
            "From the request's body to its first token.",
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self.inter_token_latency = Histogram(
            "covervlm_inter_token_latency_seconds",
            "Between two tokens of one answer.",
            buckets=TOKEN_BUCKETS,
            registry=registry,
        )
        self.e2e_latency = Histogram(
            "covervlm_e2e_request_latency_seconds",
            "From the request's body to the end of its answer.",
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self.stage = Histogram(
            "covervlm_stage_seconds",
            "Seconds of each stage before the first token: media (images decoded), agent, queue, preprocess, tower, "
            "selection, prefill.",
            ["stage"],
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "covervlm_prompt_tokens", "Prompt tokens that the language model read.", registry=registry
        )
        self.generation_tokens = Counter("covervlm_generation_tokens", "Generated tokens.", registry=registry)
        self.vision_tokens_before = Counter(
            "covervlm_vision_tokens_before", "Vision tokens of the images, unpruned.", ["method"], registry=registry
        )
        self.vision_tokens_after = Counter(
            "covervlm_vision_tokens_after", "Vision tokens that were kept.", ["method"], registry=registry
        )
        self.finished = Counter(
            "covervlm_request_success", "Finished choices of answers.", ["finished_reason"], registry=registry
        )
        self.cancelled = Counter(
            "covervlm_requests_cancelled", "Requests whose client went away before the end.", registry=registry
        )
        self.agent = Counter("covervlm_agent_passes", "First passes of guide 'agent'.", ["outcome"], registry=registry)
        self.agent_tokens = Counter(
            "covervlm_agent_tokens", "Prompt and answer tokens that the agent cost.", registry=registry
        )
        registry.register(EngineCollector(engine))
        if hasattr(engine, "collect"):  # an engine with metrics of its own, as vLLM has
            registry.register(engine)  # type: ignore[arg-type]

    def watch_adaptive_budget(self, budget: Callable[[], int]) -> None:
        """Show what `budget` returns whenever the metrics are read."""
        gauge = Gauge(
            "covervlm_adaptive_budget_tokens",
            "Vision tokens that a request without a budget would keep of each image now.",
            registry=self.registry,
        )
        gauge.set_function(budget)

    def observe_stages(self, prompt: PromptReport, media_seconds: float) -> None:
        for stage, seconds in prompt.seconds.items():
            self.stage.labels(stage).observe(seconds)
        if prompt.images:
            self.stage.labels("media").observe(media_seconds)

    def observe_agent(self, agent: AgentReport | None) -> None:
        if agent is not None:
            self.agent.labels(agent.error or "answered").inc()
            self.agent_tokens.inc(agent.prompt_tokens + agent.completion_tokens)
            self.stage.labels("agent").observe(agent.seconds)

    def request(self) -> "RequestMetrics":
        """Starts the clock of one generation."""
        return RequestMetrics(self)


class RequestMetrics:
    """The clock of one generation: sees every chunk, and its end."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._start = time.perf_counter()
        self._last: dict[int, float] = {}
        self._ended = False
        self.media_seconds = 0.0

    def chunk(self, chunk: GenerationChunk) -> None:
        metrics, now = self._metrics, time.perf_counter()
        if chunk.prompt is not None:
            self._prompt(chunk.prompt)
        if chunk.tokens:
            if not self._last:
                metrics.time_to_first_token.observe(now - self._start)
            if chunk.index in self._last:
                for _ in range(chunk.tokens):
                    metrics.inter_token_latency.observe((now - self._last[chunk.index]) / chunk.tokens)
            self._last[chunk.index] = now
            metrics.generation_tokens.inc(chunk.tokens)
        if chunk.finish_reason is not None:
            metrics.finished.labels(chunk.finish_reason).inc()

    def done(self) -> None:
        """The answer is complete."""
        self._ended = True
        self._metrics.e2e_latency.observe(time.perf_counter() - self._start)

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Tells failures of the engine, which the HTTP status counts, from cancellations."""
        try:
            yield
        except Exception:
            self._ended = True
            raise

    def released(self) -> None:
        """Nobody reads any more: a cancellation, unless the answer had ended."""
        if not self._ended:
            self._metrics.cancelled.inc()

    def _prompt(self, prompt: PromptReport) -> None:
        metrics = self._metrics
        metrics.observe_stages(prompt, self.media_seconds)
        metrics.prompt_tokens.inc(prompt.prompt_tokens)
        for image in prompt.images:
            metrics.vision_tokens_before.labels(image.method).inc(image.total)
            metrics.vision_tokens_after.labels(image.method).inc(image.kept)


class EngineCollector(Collector):
    """The engine's own gauges and totals, asked for when Prometheus asks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        yield GaugeMetricFamily("covervlm_num_requests_running", "Requests being decoded.", stats.running)
        yield GaugeMetricFamily("covervlm_num_requests_waiting", "Requests waiting for a slot.", stats.waiting)
        yield GaugeMetricFamily("covervlm_feature_cache_bytes", "Memory of cached image features.", stats.cache_bytes)
        yield CounterMetricFamily("covervlm_feature_cache_hits", "Images found in the cache.", stats.cache_hits)
        yield CounterMetricFamily("covervlm_feature_cache_misses", "Images not in the cache.", stats.cache_misses)
