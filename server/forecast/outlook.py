"""What is expected of the hours to come, with a band that past errors give, and the highest of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from covervlm.server.forecast.capacity import bearable
from covervlm.server.forecast.decomposition import Series, decompose
from covervlm.server.forecast.history import Hours

DAY, WEEK = 24, 168
AHEAD = 25
"""Hours: the one that has begun and a day."""
NEEDED = 3 * DAY
"""Hours that must be known before anything is foreseen."""
_QUANTILE = 0.95
_TRIALS = 7
"""Past days that are foreseen once more from what was known before them."""


@dataclass(frozen=True)
class Hour:
    """An hour to come. start: in Unix time. expected: requests. upper: what 95 of 100 past hours would have kept to."""

    start: int
    expected: float
    upper: float


@dataclass(frozen=True)
class Outlook:
    """What is foreseen in hour `made` (since the Unix epoch) for that hour and the day after it.

    observed: hours that are known. seasons: periods in hours that were continued. hours is empty while too few are
    known. bearable: requests an hour from which on some had to wait in the past, None if unknown.
    """

    made: int
    observed: int = 0
    seasons: tuple[int, ...] = ()
    hours: tuple[Hour, ...] = ()
    bearable: float | None = None

    @property
    def now(self) -> Hour | None:
        return self.hours[0] if self.hours else None

    @property
    def peak(self) -> Hour | None:
        """The highest of all hours."""
        return max(self.hours, key=lambda hour: hour.expected, default=None)


@dataclass(frozen=True)
class _Scale:
    """In what the seasons are added up: requests, or their logarithms where seasons grow with the level."""

    to: Callable[[Series], Series]
    back: Callable[[Series], Series]

    def ahead(self, y: Series, periods: Sequence[int], horizon: int) -> Series:
        return np.maximum(self.back(decompose(self.to(y), periods).ahead(horizon)), 0)


_SCALES = (_Scale(np.asarray, np.asarray), _Scale(np.log1p, np.expm1))


def look_ahead(past: Hours) -> Outlook:
    """The scale is the one that would have foreseen the last days best; its errors there make the band."""
    y, made = past.requests, past.first + len(past.requests)
    observed, limit = int(np.isfinite(y).sum()), bearable(y, past.crowded)
    seasons = _seasons(len(y))
    if observed < NEEDED or not seasons:
        return Outlook(made, observed, bearable=limit)
    trials = [_past_errors(scale, y) for scale in _SCALES]
    best = min(range(len(_SCALES)), key=lambda i: float(np.square(trials[i]).mean()) if len(trials[i]) else 0.0)
    if len(errors := trials[best]) == 0:  # too young for trials: how far the past is from its own seasons
        errors = y - _fitted(_SCALES[best], y, seasons)
        errors = errors[np.isfinite(errors)]
    expected = _SCALES[best].ahead(y, seasons, AHEAD)
    upper = expected + max(0.0, float(np.quantile(errors, _QUANTILE)))
    hours = [Hour((made + h) * 3600, float(expected[h]), float(upper[h])) for h in range(AHEAD)]
    return Outlook(made, observed, seasons, tuple(hours), limit)


def _seasons(length: int) -> tuple[int, ...]:
    """Those that a series of so many hours shows three times."""
    return tuple(period for period in (DAY, WEEK) if length >= 3 * period)


def _past_errors(scale: _Scale, y: Series) -> Series:
    """By how much the last days were under-predicted, hour by hour, each from what was known before it."""
    origins = [len(y) - day * DAY for day in range(1, _TRIALS + 1)]
    errors = [
        y[origin : origin + DAY] - scale.ahead(y[:origin], _seasons(origin), DAY)
        for origin in origins
        if np.isfinite(y[: max(origin, 0)]).sum() >= NEEDED
    ]
    together = np.concatenate([*errors, np.empty(0)])
    return together[np.isfinite(together)]


def _fitted(scale: _Scale, y: Series, periods: Sequence[int]) -> Series:
    return scale.back(decompose(scale.to(y), periods).at(np.arange(len(y))))
