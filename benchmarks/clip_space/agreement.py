"""How far two partitions of the same things agree."""

import numpy as np
from numpy.typing import ArrayLike


def nmi(labels: ArrayLike, truth: ArrayLike) -> float:
    """Normalised mutual information, by the arithmetic mean of both entropies, in [0, 1]."""
    joint = _contingency(labels, truth) / len(np.asarray(labels))
    rows, columns = joint.sum(1), joint.sum(0)
    both = _entropy(rows) + _entropy(columns)
    return float(2 * (both - _entropy(joint.ravel())) / both) if both > 0 else 1.0


def rand_index(labels: ArrayLike, truth: ArrayLike) -> float:
    """The share of pairs that both partitions treat alike, in [0, 1]."""
    counts = _contingency(labels, truth)
    total = _pairs(counts.sum())
    return float((total + 2 * _pairs(counts) - _pairs(counts.sum(1)) - _pairs(counts.sum(0))) / total)


def _contingency(labels: ArrayLike, truth: ArrayLike) -> np.ndarray:
    a, b = np.asarray(labels), np.asarray(truth)
    counts = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(counts, (a, b), 1)
    return counts


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def _pairs(counts: np.ndarray) -> float:
    return float((counts * (counts - 1) / 2).sum())
