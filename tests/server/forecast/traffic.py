"""Weeks of made-up traffic, and a clock that stands still until it is told."""

import numpy as np

from covervlm.server.forecast.counter import Minute

START = 413_712
"""The hour, since the Unix epoch, of a Thursday in March 2017, at midnight UTC: 17,238 days."""
BUSY = (9, 20)


class Clock:
    """Shows Unix time `now` in seconds."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def daily(hours: int, *, seed: int = 0, base: float = 60.0, peak: float = 600.0, weekend: float = 0.5) -> np.ndarray:
    """(hours,) requests from START on: quiet nights, a peak at 20:00 UTC, less on two days in seven, Poisson noise."""
    t = np.arange(hours)
    rate = base + (peak - base) * np.exp(-(((t % 24) - 20) ** 2) / 8)
    rate = np.where(t // 24 % 7 >= 5, weekend * rate, rate)
    return np.random.default_rng(seed).poisson(rate).astype(float)


def minutes(requests: np.ndarray, first: int = START, bearable: float | None = None) -> dict[int, Minute]:
    """As a server would have counted them; hours above `bearable` were crowded, below it none was. NaN is a gap."""
    return {
        (first + hour) * 60 + minute: Minute(
            int(count // 60) + bool(minute < count % 60), None if bearable is None else bool(count > bearable)
        )
        for hour, count in enumerate(requests)
        if np.isfinite(count)
        for minute in range(60)
    }
