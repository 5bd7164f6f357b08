"""What the server measures, for Prometheus; names follow vLLM's where it measures the same thing."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from covervlm.server.agent import AgentReport
from covervlm.server.api.collectors import ClipCollector, EngineCollector
from covervlm.server.api.request_metrics import RequestMetrics
from covervlm.server.api.request_record import RequestRecord
from covervlm.server.engines.base import Engine, PromptReport
from covervlm.server.inflight import InFlight

if TYPE_CHECKING:
    from covervlm.server.clip.service import ClipService

STAGE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
REQUEST_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
LENGTH_BUCKETS = tuple(digit * 10**power for power in range(5) for digit in (1, 2, 5))
"""Of token counts: 1, 2, 5, 10, ... 50000."""


class Metrics:
    """The counters and histograms of one app, in a registry of their own."""

    def __init__(self, engine: Engine, *, model: str = "") -> None:
        """`model` is the name that clients use."""
        self.registry = registry = CollectorRegistry()
        self.http_requests = Counter(
            "covervlm_http_requests", "Answered HTTP requests.", ["route", "status"], registry=registry
        )
        self.http_seconds = Histogram(
            "covervlm_http_request_duration_seconds",
            "From an HTTP request's head to the end of its response.",
            ["route"],
            buckets=REQUEST_BUCKETS,
            registry=registry,
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
            "Seconds of each stage of a request by its pruning method: media (images decoded), agent, queue, "
            "preprocess, tower, selection, prefill, decode.",
            ["stage", "method"],
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "covervlm_prompt_tokens", "Prompt tokens that the language model read.", registry=registry
        )
        self.generation_tokens = Counter("covervlm_generation_tokens", "Generated tokens.", registry=registry)
        self.request_prompt_tokens = Histogram(
            "covervlm_request_prompt_tokens",
            "Prompt tokens of one request, after pruning.",
            buckets=LENGTH_BUCKETS,
            registry=registry,
        )
        self.request_generation_tokens = Histogram(
            "covervlm_request_generation_tokens",
            "Tokens generated for one request.",
            buckets=LENGTH_BUCKETS,
            registry=registry,
        )
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
        registry.register(EngineCollector(engine, model))
        ProcessCollector(registry=registry)
        if hasattr(engine, "collect"):  # an engine with metrics of its own, as vLLM has
            registry.register(engine)  # type: ignore[arg-type]

    def watch_inflight(self, inflight: InFlight) -> None:
        """Show the memory that is counted for requests in flight."""
        gauge = Gauge(
            "covervlm_inflight_bytes", "Bodies and decoded images of requests in flight.", registry=self.registry
        )
        gauge.set_function(lambda: inflight.bytes)

    def watch_adaptive_budget(self, budget: Callable[[], int]) -> None:
        """Show what `budget` returns whenever the metrics are read."""
        gauge = Gauge(
            "covervlm_adaptive_budget_tokens",
            "Vision tokens that a request without a budget would keep of each image now.",
            registry=self.registry,
        )
        gauge.set_function(budget)

    def watch_clip(self, clip: "ClipService") -> None:
        """Show its jobs and sessions whenever the metrics are read."""
        self.registry.register(ClipCollector(clip))

    def observe_stages(self, prompt: PromptReport, media_seconds: float) -> None:
        """The stages of a request whose prompt has been read; without images there is no tower and no selection."""
        for stage, seconds in prompt.seconds.items():
            if prompt.images or stage not in ("tower", "selection"):
                self.stage.labels(stage, prompt.method).observe(seconds)
        if prompt.images:
            self.stage.labels("media", prompt.method).observe(media_seconds)

    def observe_agent(self, agent: AgentReport | None, method: str) -> None:
        if agent is not None:
            self.agent.labels(agent.error or "answered").inc()
            self.agent_tokens.inc(agent.prompt_tokens + agent.completion_tokens)
            self.stage.labels("agent", method).observe(agent.seconds)

    def request(self, record: RequestRecord) -> RequestMetrics:
        """Starts the clock of one generation."""
        return RequestMetrics(self, record)
