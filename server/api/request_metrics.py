"""The clock of one generation: sees every chunk, and its end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from covervlm.server.engines.base import GenerationChunk, PromptReport

if TYPE_CHECKING:
    from covervlm.server.api.metrics import Metrics


class RequestMetrics:
    """Runs from the request's body to its end. `media_seconds` is to be set before the first chunk."""

    def __init__(self, metrics: "Metrics") -> None:
        self._metrics = metrics
        self._start = time.perf_counter()
        self._first = 0.0
        self._last: dict[int, float] = {}
        self._prompt = PromptReport(prompt_tokens=0)
        self._tokens = 0
        self._ended = False
        self.media_seconds = 0.0

    def chunk(self, chunk: GenerationChunk) -> None:
        metrics, now = self._metrics, time.perf_counter()
        if chunk.prompt is not None:
            self._read(chunk.prompt)
        if chunk.tokens:
            if not self._last:
                self._first = now
                metrics.time_to_first_token.observe(now - self._start)
            if chunk.index in self._last:
                for _ in range(chunk.tokens):
                    metrics.inter_token_latency.observe((now - self._last[chunk.index]) / chunk.tokens)
            self._last[chunk.index] = now
            self._tokens += chunk.tokens
            metrics.generation_tokens.inc(chunk.tokens)
        if chunk.finish_reason is not None:
            metrics.finished.labels(chunk.finish_reason).inc()

    def done(self) -> None:
        """The answer is complete."""
        metrics, now = self._metrics, time.perf_counter()
        self._ended = True
        metrics.e2e_latency.observe(now - self._start)
        metrics.request_prompt_tokens.observe(self._prompt.prompt_tokens)
        metrics.request_generation_tokens.observe(self._tokens)
        if self._last:
            metrics.stage.labels("decode", self._prompt.method).observe(now - self._first)

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

    def _read(self, prompt: PromptReport) -> None:
        metrics = self._metrics
        self._prompt = prompt
        metrics.observe_stages(prompt, self.media_seconds)
        metrics.prompt_tokens.inc(prompt.prompt_tokens)
        for image in prompt.images:
            metrics.vision_tokens_before.labels(image.method).inc(image.total)
            metrics.vision_tokens_after.labels(image.method).inc(image.kept)
