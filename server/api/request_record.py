"""What is known of one HTTP request when it ends: the log's line and the trace are made of it."""

import time
from dataclasses import dataclass, field
from typing import Any

from covervlm.server.engines.base import PromptReport


@dataclass(frozen=True)
class Stage:
    """A stretch of a request; `start` in seconds from the request's own."""

    name: str
    start: float
    seconds: float


@dataclass
class RequestRecord:
    """Filled in by whoever learns something, from the outermost layer to the engine's first chunk.

    `question` is the text of the messages, kept only where `keeps_content`. `error` is the code that the caller was
    told. Times are on two clocks: `started` counts on (time.perf_counter), `unix_time` says when that was.
    """

    request_id: str
    method: str
    keeps_content: bool = False
    started: float = field(default_factory=time.perf_counter)
    unix_time: float = field(default_factory=time.time)
    route: str = "unknown"
    status: int = 0
    seconds: float = 0.0
    owner: str = ""
    model: str | None = None
    error: str | None = None
    prompt: PromptReport | None = None
    generation_tokens: int | None = None
    first_token_seconds: float | None = None
    finish_reason: str | None = None
    question: str | None = None
    trace_id: str | None = None
    stages: list[Stage] = field(default_factory=list)

    @property
    def elapsed(self) -> float:
        """Seconds since the request came."""
        return time.perf_counter() - self.started

    def vision_tokens(self) -> tuple[int, int]:
        """Of all images: unpruned, and kept."""
        images = self.prompt.images if self.prompt else ()
        return sum(image.total for image in images), sum(image.kept for image in images)

    def line(self) -> dict[str, Any]:
        """The fields of the log's line; what does not apply is left out."""
        fields: dict[str, Any] = {
            "request_id": self.request_id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "seconds": round(self.seconds, 6),
            "owner": self.owner[:8] or None,
            "model": self.model,
            "error": self.error,
            "time_to_first_token": self.first_token_seconds and round(self.first_token_seconds, 6),
            "generation_tokens": self.generation_tokens,
            "finish_reason": self.finish_reason,
            "question": self.question,
            "trace_id": self.trace_id,
        }
        if self.prompt is not None:
            before, after = self.vision_tokens()
            fields |= {"prompt_tokens": self.prompt.prompt_tokens, "pruning": self.prompt.method}
            fields |= {"vision_tokens_before": before, "vision_tokens_after": after}
        return {name: value for name, value in fields.items() if value is not None}
