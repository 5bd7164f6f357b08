"""Forecasts by decomposition: seasons are taken out first, the rest is a line with AR(1) noise (arXiv 2303.13529).

General models, fitted to the raw series, under-predict peaks: most of a peak is season, and that is averaged here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Series = NDArray[np.floating]

_ROUNDS = 50
"""In which what stands in gaps settles."""
_NOISE = 1e-9
"""Of the largest value: what is smaller is rounding."""


@dataclass(frozen=True)
class Decomposition:
    """y[t] = intercept + slope t + sum over periods p of patterns[p][t mod p] + remainder[t].

    remainder is (T,), NaN in gaps; the mean of each pattern is 0; phi is the remainder's autoregression.
    """

    patterns: Mapping[int, Series]
    intercept: float
    slope: float
    phi: float
    remainder: Series

    def at(self, t: NDArray[np.integer]) -> Series:
        """Line and seasons at the buckets t, which may lie beyond the series."""
        return self.intercept + self.slope * t + sum(pattern[t % p] for p, pattern in self.patterns.items())

    def ahead(self, horizon: int) -> Series:
        """(horizon,): the next buckets. The last remainder that is known fades out by phi a bucket."""
        length = len(self.remainder)
        last = int(np.flatnonzero(np.isfinite(self.remainder))[-1])
        t = np.arange(length, length + horizon)
        return self.at(t) + self.phi ** (t - last) * self.remainder[last]


def decompose(y: ArrayLike, periods: Sequence[int]) -> Decomposition:
    """y: (T,) values per bucket, NaN in gaps; periods in buckets, each at most T / 3.

    Gaps count nowhere: patterns, line and noise are of what is there. Only moving averages need a value in them, and
    get that of line and seasons. Raises ValueError for a series that is too short or empty.
    """
    y = np.asarray(y, np.float64)
    known = np.isfinite(y)
    if not known.any() or len(y) < 3 * max(periods, default=1):
        raise ValueError(f"{len(y)} buckets are too few for periods of {tuple(periods)}: three of each are needed")
    t = np.arange(len(y))
    scale = float(np.abs(y[known]).max())
    filled = np.interp(t, t[known], y[known])
    for _ in range(_ROUNDS):
        fitted = _fit(filled, known, sorted(periods), scale)
        if known.all():
            break
        before, filled = filled, np.where(known, y, fitted.at(t))
        if np.abs(filled - before).max() <= _NOISE * scale:
            break
    return fitted


def forecast(y: ArrayLike, *, periods: Sequence[int], horizon: int) -> Series:
    """(horizon,): the continuation of y (T,), in its own floating type; see `decompose`."""
    y = np.asarray(y)
    dtype = y.dtype if np.issubdtype(y.dtype, np.floating) else np.dtype(np.float64)
    return decompose(y, periods).ahead(horizon).astype(dtype)


def _fit(filled: Series, known: NDArray[np.bool_], periods: Sequence[int], scale: float) -> Decomposition:
    t = np.arange(len(filled))
    rest, patterns = filled, {}
    for p in periods:
        patterns[p] = _pattern(rest, known, p)
        rest = rest - patterns[p][t % p]
    intercept, slope = np.polynomial.polynomial.polyfit(t[known], rest[known], 1)
    e = np.where(known, rest - (intercept + slope * t), np.nan)
    return Decomposition(patterns, float(intercept), float(slope), _autoregression(e, scale), e)


def _pattern(rest: Series, known: NDArray[np.bool_], p: int) -> Series:
    """(p,): the mean distance from the centred moving average, bucket by bucket of the period."""
    window = np.full(p + 1 - p % 2, 1.0 / p)
    if p % 2 == 0:
        window[[0, -1]] /= 2
    half = len(window) // 2
    inside = np.arange(half, len(rest) - half)
    inside, distance = inside[known[inside]], (rest[inside] - np.convolve(rest, window, "valid"))[known[inside]]
    counts = np.bincount(inside % p, minlength=p)
    pattern = np.bincount(inside % p, distance, minlength=p) / np.maximum(counts, 1)
    return pattern - pattern.mean()


def _autoregression(e: Series, scale: float) -> float:
    before, after = e[:-1], e[1:]
    pairs = np.isfinite(before) & np.isfinite(after)
    power = float(before[pairs] @ before[pairs])
    if power <= len(e) * (_NOISE * scale) ** 2:
        return 0.0
    return float(np.clip(before[pairs] @ after[pairs] / power, -0.999, 0.999))
