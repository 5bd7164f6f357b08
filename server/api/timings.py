"""How long an answer took, in llama.cpp's words."""

import time

from covervlm.server.core.generation import PromptReport


class Timings:
    """A clock for one answer, whose tokens are counted from the moment when its prompt has been read."""

    def __init__(self) -> None:
        self._since: float | None = None

    def progress(self, prompt: PromptReport) -> dict[str, float]:
        """llama.cpp's `prompt_progress` of a prompt that has been read. time_ms: of that alone."""
        total = prompt.prompt_tokens
        return {"total": total, "cache": prompt.cached_tokens, "processed": total, "time_ms": _read_ms(prompt)}

    def so_far(self, prompt: PromptReport, written: int) -> dict[str, float]:
        """llama.cpp's `timings`: of the prompt's tokens that were not in the cache, and of those written since then."""
        now = time.perf_counter()
        if self._since is None:
            self._since = now
        read = prompt.prompt_tokens - prompt.cached_tokens
        return {
            "cache_n": prompt.cached_tokens,
            **_rate("prompt", read, _read_ms(prompt)),
            **_rate("predicted", written, (now - self._since) * 1e3),
        }


def _read_ms(prompt: PromptReport) -> float:
    return prompt.seconds.get("prefill", 0.0) * 1e3


def _rate(name: str, count: int, milliseconds: float) -> dict[str, float]:
    """No rate where no time has passed."""
    return {
        f"{name}_n": count,
        f"{name}_ms": milliseconds,
        f"{name}_per_token_ms": milliseconds / count if count else 0.0,
        f"{name}_per_second": count / milliseconds * 1e3 if milliseconds else 0.0,
    }
