"""Intervals for ratios of accuracies by a bootstrap over scenes, and p-values of many tests at once."""

from collections.abc import Sequence

import numpy as np

from covervlm.server.tuning.intervals import Estimate


class SceneBootstrap:
    """Percentile bootstrap that resamples whole scenes, since questions about one image go right or wrong together.

    scenes: for every question, which scene it is about. All estimates share the same resamples, so ratios are paired.
    """

    def __init__(self, scenes: Sequence[int], resamples: int = 2000, seed: int = 0) -> None:
        _, self._scene = np.unique(np.asarray(scenes), return_inverse=True)
        count = int(self._scene.max()) + 1
        rng = np.random.default_rng(seed)
        self._weights = rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)

    def retention(self, correct: Sequence[bool], reference: Sequence[bool]) -> Estimate:
        """Accuracy relative to the accuracy of `reference` on the same questions."""
        hits, base = np.asarray(correct, np.float64), np.asarray(reference, np.float64)
        return _estimate(hits.mean() / base.mean(), self._hits(hits) / self._hits(base))

    def _hits(self, hits: np.ndarray) -> np.ndarray:
        return self._weights @ np.bincount(self._scene, weights=hits, minlength=self._weights.shape[1])


def _estimate(value: float, resampled: np.ndarray) -> Estimate:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for testing all of them at once (Holm's step-down), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted
