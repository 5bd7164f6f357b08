"""What the server measures, for Prometheus, and when; names follow vLLM's where it measures the same thing."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from covervlm.server.core.engine import Engine, HasMetrics
from covervlm.server.core.generation import GenerationChunk, GenerationRequest, PromptReport
from covervlm.server.telemetry.collectors import (
    ClipCollector,
    ClipFigures,
    EngineCollector,
    ForecastCollector,
    ForecastFigures,
)
from covervlm.server.telemetry.request_record import RequestRecord

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
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        seconds = partial(Histogram, registry=registry, buckets=REQUEST_BUCKETS)
        tokens = partial(Histogram, registry=registry, buckets=LENGTH_BUCKETS)
        self.http_requests = counter("covervlm_http_requests", "Answered HTTP requests.", ["route", "status"])
        self.http_seconds = seconds(
            "covervlm_http_request_duration_seconds",
            "From an HTTP request's head to the end of its response.",
            ["route"],
        )
        self.demand = counter(
            "covervlm_demand_requests", "Requests that bring work, refused for want of room or not: what is forecast."
        )
        self.http_in_flight = gauge("covervlm_http_requests_in_flight", "HTTP requests being answered.")
        self.time_to_first_token = seconds(
            "covervlm_time_to_first_token_seconds", "From the request's body to its first token."
        )
        self.inter_token_latency = seconds(
            "covervlm_inter_token_latency_seconds", "Between two tokens of one answer.", buckets=TOKEN_BUCKETS
        )
        self.e2e_latency = seconds(
            "covervlm_e2e_request_latency_seconds", "From the request's body to the end of its answer."
        )
        self.stage = seconds(
            "covervlm_stage_seconds",
            "Seconds of each stage of a request by its pruning method: media (images decoded), agent, preprocess, "
            "queue, tower, selection, prefill, decode.",
            ["stage", "method"],
            buckets=STAGE_BUCKETS,
        )
        self.prompt_tokens = counter("covervlm_prompt_tokens", "Prompt tokens of the language model.")
        self.cached_prompt_tokens = counter(
            "covervlm_cached_prompt_tokens", "Prompt tokens known from an earlier prompt and not read again."
        )
        self.generation_tokens = counter("covervlm_generation_tokens", "Generated tokens.")
        self.request_prompt_tokens = tokens(
            "covervlm_request_prompt_tokens", "Prompt tokens of one request, after pruning."
        )
        self.request_generation_tokens = tokens(
            "covervlm_request_generation_tokens", "Tokens generated for one request."
        )
        self.vision_tokens_before = counter(
            "covervlm_vision_tokens_before", "Vision tokens of the images, unpruned.", ["method"]
        )
        self.vision_tokens_after = counter("covervlm_vision_tokens_after", "Vision tokens that were kept.", ["method"])
        self.finished = counter("covervlm_request_success", "Finished choices of answers.", ["finished_reason"])
        self.cancelled = counter("covervlm_requests_cancelled", "Requests whose client went away before the end.")
        self.agent = counter("covervlm_agent_passes", "First passes of guide 'agent'.", ["outcome"])
        self.agent_tokens = counter("covervlm_agent_tokens", "Prompt and answer tokens that the agent cost.")
        registry.register(EngineCollector(engine, model))
        ProcessCollector(registry=registry)
        if isinstance(engine, HasMetrics):
            registry.register(engine)  # type: ignore[arg-type]

    def watch_inflight(self, held: Callable[[], int]) -> None:
        """Show the memory, in bytes, that is counted for requests in flight."""
        what = "Bodies and decoded images of requests in flight."
        Gauge("covervlm_inflight_bytes", what, registry=self.registry).set_function(held)

    def watch_adaptive_budget(self, budget: Callable[[], int]) -> None:
        """Show what `budget` returns whenever the metrics are read."""
        what = "Vision tokens that a request without a budget would keep of each image now."
        Gauge("covervlm_adaptive_budget_tokens", what, registry=self.registry).set_function(budget)

    def watch_forecast(self, outlook: Callable[[], ForecastFigures]) -> None:
        """Show the latest outlook whenever the metrics are read."""
        self.registry.register(ForecastCollector(outlook))

    def watch_clip(self, figures: Callable[[], ClipFigures]) -> None:
        """Show the CLIP service's jobs and streams whenever the metrics are read."""
        self.registry.register(ClipCollector(figures))

    # The events of one generation, in order; each also fills in the request's record.

    def began(self, record: RequestRecord) -> None:
        """The body is read."""
        record.body_read = time.perf_counter()

    def prepared(self, record: RequestRecord, request: GenerationRequest) -> None:
        """The engine is about to get the request."""
        if record.keeps_content:
            record.question = request.text
        start = record.body_read - record.started
        if request.images:
            record.stages["media"] = (start, record.media_seconds)
        if (agent := record.agent) is not None:
            record.stages["agent"] = (start + record.media_seconds, agent.seconds)
            self.agent.labels(agent.error or "answered").inc()
            self.agent_tokens.inc(agent.prompt_tokens + agent.completion_tokens)
            self.stage.labels("agent", request.pruning.method).observe(agent.seconds)
        record.engine_asked = time.perf_counter()

    def prompt(self, record: RequestRecord, prompt: PromptReport) -> None:
        """The engine has read, or only pruned, the prompt; without images there is no tower and no selection."""
        record.prompt = prompt
        record.vision_tokens_before = sum(image.total for image in prompt.images)
        record.vision_tokens_after = sum(image.kept for image in prompt.images)
        start = record.engine_asked - record.started
        for stage, seconds in prompt.seconds.items():
            record.stages[stage] = (start, seconds)
            start += seconds
            if prompt.images or stage not in ("tower", "selection"):
                self.stage.labels(stage, prompt.method).observe(seconds)
        if prompt.images:
            self.stage.labels("media", prompt.method).observe(record.media_seconds)

    def chunk(self, record: RequestRecord, chunk: GenerationChunk, *, choice: int | None = None) -> None:
        """The engine has sent a chunk; choice: its number among all choices of a request for several prompts."""
        index = chunk.index if choice is None else choice
        now = time.perf_counter()
        if chunk.prompt is not None:
            self.prompt(record, chunk.prompt)
            self.prompt_tokens.inc(chunk.prompt.prompt_tokens)
            self.cached_prompt_tokens.inc(chunk.prompt.cached_tokens)
            for image in chunk.prompt.images:
                self.vision_tokens_before.labels(image.method).inc(image.total)
                self.vision_tokens_after.labels(image.method).inc(image.kept)
        if chunk.tokens:
            if record.first_token_seconds is None:
                record.first_token_seconds = now - record.started
                self.time_to_first_token.observe(now - record.body_read)
            if index in record.last_tokens:
                for _ in range(chunk.tokens):
                    self.inter_token_latency.observe((now - record.last_tokens[index]) / chunk.tokens)
            record.last_tokens[index] = now
            record.generation_tokens = (record.generation_tokens or 0) + chunk.tokens
            self.generation_tokens.inc(chunk.tokens)
        if chunk.finish_reason is not None:
            record.finish_reason = chunk.finish_reason
            self.finished.labels(chunk.finish_reason).inc()

    def done(self, record: RequestRecord) -> None:
        """The answer is complete."""
        now = time.perf_counter()
        record.answered = True
        prompt = record.prompt or PromptReport(prompt_tokens=0)
        self.e2e_latency.observe(now - record.body_read)
        self.request_prompt_tokens.observe(prompt.prompt_tokens)
        self.request_generation_tokens.observe(record.generation_tokens or 0)
        if (first := record.first_token_seconds) is not None:
            decode = now - record.started - first
            record.stages["decode"] = (first, decode)
            self.stage.labels("decode", prompt.method).observe(decode)

    @contextmanager
    def failures(self, record: RequestRecord) -> Iterator[None]:
        """Keeps a request that fails from being counted as cancelled; failures are counted by their HTTP status."""
        try:
            yield
        except Exception:
            record.answered = True
            raise

    def released(self, record: RequestRecord) -> None:
        """The response is closed; if the generation had not ended, that counts as a cancellation."""
        if not record.answered:
            self.cancelled.inc()
