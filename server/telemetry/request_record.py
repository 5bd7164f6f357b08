"""What is known of one HTTP request: the metrics, the log's line and the trace are made from it."""

import time
from dataclasses import dataclass, field

from covervlm.server.core.generation import AgentReport, PromptReport, PruningPolicy


@dataclass
class RequestRecord:
    """Filled in by whoever learns something, from the outermost layer to the engine's first chunk.

    Times are in seconds. `started` and the other moments are of time.perf_counter; `unix_time` is `started` in Unix
    time. `stages` holds the start, counted from `started`, and the length of each stage. `last_tokens` are the moments
    of each choice's last token. `media_seconds` is how long the images took to be decoded, waiting included. `agent`
    is the first pass that guided the selection, where one was made. `adaptive`: the server chose the budget by its
    load. `policy`: how its images are pruned. `question` is the text of the messages, kept only where `keeps_content`.
    `error` is the error code in the answer. `answered`: the generation has ended by itself, in success or failure.
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
    model: str = ""
    error: str | None = None
    question: str | None = None
    trace_id: str | None = None

    body_read: float = 0.0
    engine_asked: float = 0.0
    media_seconds: float = 0.0
    agent: AgentReport | None = None
    adaptive: bool = False
    policy: PruningPolicy | None = None
    prompt: PromptReport | None = None
    vision_tokens_before: int = 0
    vision_tokens_after: int = 0
    generation_tokens: int | None = None
    first_token_seconds: float | None = None
    last_tokens: dict[int, float] = field(default_factory=dict)
    finish_reason: str | None = None
    answered: bool = False
    stages: dict[str, tuple[float, float]] = field(default_factory=dict)
