"""Made-up traffic in the shapes of public traces: seasons of days and weeks, wandering demand, and bursts."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float64]

HOUR = 3600
WEEK = 168


def _office(t: Series) -> Series:
    """Working days from morning to evening with a dip at noon, next to nothing at night and on weekends."""
    hour, weekday = t % 24, t // 24 % 7 < 5
    day = np.exp(-(((hour - 10.5) / 2) ** 2)) + np.exp(-(((hour - 15) / 2.2) ** 2))
    return 0.06 + np.where(weekday, day, 0.12 * day)


def _evening(t: Series) -> Series:
    """A web site's: never quiet, highest in the evening, a little more on weekends."""
    return 0.35 + 0.65 * np.exp(-((((t + 4) % 24 - 12) / 4.5) ** 2)) * np.where(t // 24 % 7 < 5, 0.9, 1.0)


SHAPES: dict[str, Callable[[Series], Series]] = {"office": _office, "evening": _evening}


def rates(shape: str, hours: int, peak: float, seed: int) -> Series:
    """(hours,) expected requests of each hour; `peak` is about that of the highest usual hours.

    Growth of 1 % a week, demand that wanders by 8 % (AR(1) over hours), and about two bursts a week of one to three
    hours with up to 2.5 times the load.
    """
    numbers = np.random.default_rng(seed)
    t = np.arange(hours, dtype=float)
    wander = np.zeros(hours)
    for hour in range(1, hours):
        wander[hour] = 0.8 * wander[hour - 1] + numbers.normal(0, 0.05)
    level = peak * SHAPES[shape](t) * (1 + 0.01 * t / WEEK) * np.exp(wander)
    for start in np.flatnonzero(numbers.random(hours) < 2 / WEEK):
        level[start : start + numbers.integers(1, 4)] *= numbers.uniform(1.3, 2.5)
    return level


def counts(level: Series, seed: int) -> Series:
    """(hours,) requests that came."""
    return np.random.default_rng([seed, 1]).poisson(level).astype(float)


def arrivals(level: Series, seed: int) -> Series:
    """Moments of all requests in seconds, ascending; the rate runs straight from one hour's middle to the next's."""
    numbers = np.random.default_rng([seed, 2])
    minute = np.arange(len(level) * 60)
    smooth = np.interp((minute + 0.5) / 60, np.arange(len(level)) + 0.5, level) / 60
    number = numbers.poisson(smooth)
    return np.sort(np.repeat(minute * 60.0, number) + numbers.uniform(0, 60, number.sum()))
