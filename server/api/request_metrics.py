"""The clock of one generation: sees every chunk, and its end."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from covervlm.server.api.request_record import RequestRecord, Stage
from covervlm.server.engines.base import GenerationChunk, PromptReport

if TYPE_CHECKING:
    from covervlm.server.api.metrics import Metrics
    from covervlm.server.api.prepare import Prepared


class RequestMetrics:
    """Runs from the request's body to its end; what it learns goes to the metrics and into the request's record."""

    def __init__(self, metrics: "Metrics", record: RequestRecord) -> None:
        self._metrics = metrics
        self._record = record
        self._start = self._engine_start = record.elapsed
        self._media_seconds = 0.0
        self._last: dict[int, float] = {}
        self._ended = False

    def prepared(self, prepared: "Prepared", model: str) -> None:
        """The engine is about to get the request, which named this model."""
        record = self._record
        record.model = model
        if record.keeps_content:
            record.question = "\n".join(message.text for message in prepared.request.messages)
        self._media_seconds = prepared.media_seconds
        self._metrics.observe_agent(prepared.agent, prepared.request.pruning.method)
        stages = [Stage("media", self._start, prepared.media_seconds)] if prepared.request.images else []
        if prepared.agent is not None:
            stages.append(Stage("agent", self._start + prepared.media_seconds, prepared.agent.seconds))
        record.stages += stages
        self._engine_start = record.elapsed

    def prompt(self, prompt: PromptReport) -> None:
        """The engine has read, or only pruned, the prompt."""
        self._record.prompt = prompt
        self._metrics.observe_stages(prompt, self._media_seconds)
        start = self._engine_start
        for name, seconds in prompt.seconds.items():
            self._record.stages.append(Stage(name, start, seconds))
            start += seconds

    def chunk(self, chunk: GenerationChunk) -> None:
        metrics, record, now = self._metrics, self._record, self._record.elapsed
        if chunk.prompt is not None:
            self.prompt(chunk.prompt)
            metrics.prompt_tokens.inc(chunk.prompt.prompt_tokens)
            for image in chunk.prompt.images:
                metrics.vision_tokens_before.labels(image.method).inc(image.total)
                metrics.vision_tokens_after.labels(image.method).inc(image.kept)
        if chunk.tokens:
            if record.first_token_seconds is None:
                record.first_token_seconds = now
                metrics.time_to_first_token.observe(now - self._start)
            if chunk.index in self._last:
                for _ in range(chunk.tokens):
                    metrics.inter_token_latency.observe((now - self._last[chunk.index]) / chunk.tokens)
            self._last[chunk.index] = now
            record.generation_tokens = (record.generation_tokens or 0) + chunk.tokens
            metrics.generation_tokens.inc(chunk.tokens)
        if chunk.finish_reason is not None:
            record.finish_reason = chunk.finish_reason
            metrics.finished.labels(chunk.finish_reason).inc()

    def done(self) -> None:
        """The answer is complete."""
        metrics, record, now = self._metrics, self._record, self._record.elapsed
        self._ended = True
        prompt = record.prompt or PromptReport(prompt_tokens=0)
        metrics.e2e_latency.observe(now - self._start)
        metrics.request_prompt_tokens.observe(prompt.prompt_tokens)
        metrics.request_generation_tokens.observe(record.generation_tokens or 0)
        if record.first_token_seconds is not None:
            decode = Stage("decode", record.first_token_seconds, now - record.first_token_seconds)
            record.stages.append(decode)
            metrics.stage.labels(decode.name, prompt.method).observe(decode.seconds)

    def failed(self, code: str | None) -> None:
        """The stream told the caller of a failure, its status long sent."""
        self._record.error = code

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
