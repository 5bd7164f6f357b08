"""Intervals and tests for accuracies: a bootstrap over scenes, and McNemar's exact test for pairs of methods."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A value with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


class SceneBootstrap:
    """Percentile bootstrap that resamples whole scenes, since questions about one image go right or wrong together.

    scenes: for every question, which scene it is about. All estimates share the same resamples, so ratios are paired.
    """

    def __init__(self, scenes: Sequence[int], resamples: int = 2000, seed: int = 0) -> None:
        _, self._scene = np.unique(np.asarray(scenes), return_inverse=True)
        count = int(self._scene.max()) + 1
        rng = np.random.default_rng(seed)
        self._weights = rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
        self._size = np.bincount(self._scene, minlength=count).astype(np.float64)

    def accuracy(self, correct: Sequence[bool]) -> Estimate:
        """Share of right answers."""
        hits = np.asarray(correct, np.float64)
        return _estimate(hits.mean(), self._hits(hits) / (self._weights @ self._size))

    def retention(self, correct: Sequence[bool], reference: Sequence[bool]) -> Estimate:
        """Accuracy relative to the accuracy of `reference` on the same questions."""
        hits, base = np.asarray(correct, np.float64), np.asarray(reference, np.float64)
        return _estimate(hits.mean() / base.mean(), self._hits(hits) / self._hits(base))

    def _hits(self, hits: np.ndarray) -> np.ndarray:
        return self._weights @ np.bincount(self._scene, weights=hits, minlength=len(self._size))


def _estimate(value: float, resampled: np.ndarray) -> Estimate:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))


@dataclass(frozen=True)
class PairedComparison:
    """Two methods on the same questions: how many only one of them answers right, and McNemar's exact two-sided p."""

    only_first: int
    only_second: int
    questions: int
    p: float

    @property
    def difference(self) -> float:
        """Accuracy of the first minus accuracy of the second."""
        return (self.only_first - self.only_second) / self.questions


def compare(first: Sequence[bool], second: Sequence[bool]) -> PairedComparison:
    """McNemar's exact test: among questions that one of both gets right, either is as likely to under the null."""
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    if a.shape != b.shape:
        raise ValueError(f"the methods were asked {len(a)} and {len(b)} questions; a paired test needs the same ones")
    only_first, only_second = int((a & ~b).sum()), int((~a & b).sum())
    discordant = only_first + only_second
    tail = sum(comb(discordant, i) for i in range(min(only_first, only_second) + 1))
    return PairedComparison(only_first, only_second, len(a), min(1.0, 2 * tail / 2**discordant))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for testing all of them at once (Holm's step-down), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted
