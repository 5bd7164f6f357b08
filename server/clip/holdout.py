"""What a learned classifier is worth: examples held out of its learning, and figures on them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

FOLDS = 5
"""A fifth of the examples is held out at a time."""

MANY = 5000
"""From this many examples on, one hold-out is enough; with fewer, each example is held out once."""


def folds(labels: Tensor, *, seed: int) -> Tensor:
    """(n,) int64: the fold, of five of about equal size, in which each example is held out; -1 for never.

    Every class is dealt to the folds in turn, so that each holds out about a fifth of it and none all of it: the only
    example of a class is never held out. labels: (n,) int64.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = order[labels[order].argsort(stable=True)]
    alone = torch.bincount(labels)[labels[by_class]] == 1
    dealt = torch.full_like(labels, -1)
    dealt[by_class[~alone]] = torch.arange(int((~alone).sum())) % FOLDS
    return dealt


def held_out(labels: Tensor, *, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows to learn from and rows to judge by: all five folds of few examples, the first of many.

    ValueError where no class has two examples.
    """
    dealt = folds(labels, seed=seed)
    if not bool((dealt >= 0).any()):
        raise ValueError("every class has one example only, so none can be held out; give some class a second one")
    for fold in range(FOLDS if len(labels) < MANY else 1):
        if bool((dealt == fold).any()):
            yield (dealt != fold).nonzero().squeeze(1), (dealt == fold).nonzero().squeeze(1)


@dataclass(frozen=True)
class Share:
    """`right` of `count`, with the bounds of Wilson's 95 % interval."""

    right: int
    count: int

    @property
    def value(self) -> float:
        return self.right / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        if not self.count:
            return 0.0, 1.0
        squared, p, n = 1.96**2, self.value, self.count
        middle = (p + squared / (2 * n)) / (1 + squared / n)
        half = 1.96 * math.sqrt(p * (1 - p) / n + squared / (4 * n * n)) / (1 + squared / n)
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, eq=False)
class Score:
    """How held-out examples were labelled: accuracy over all, by class and by group, and the confusions.

    confusions: (true, answered, how often) of the wrong answers, the most frequent first.
    """

    accuracy: Share
    classes: list[Share]
    groups: dict[int, Share]
    confusions: list[tuple[int, int, int]]

    @property
    def class_mean(self) -> float:
        """Over the classes of which examples were held out."""
        known = [share.value for share in self.classes if share.count]
        return sum(known) / len(known)

    @property
    def worst_group(self) -> float:
        """Of the groups; without them, of the classes."""
        return min(share.value for share in (self.groups.values() or self.classes) if share.count)


def score(answers: Tensor, labels: Tensor, groups: Tensor | None, *, classes: int) -> Score:
    """answers, labels, groups: (m,) int64 of the held-out examples, m >= 1."""
    right = answers == labels
    counts = torch.bincount(labels, minlength=classes).tolist()
    hits = torch.bincount(labels[right], minlength=classes).tolist()
    wrong, times = (labels * classes + answers)[~right].unique(return_counts=True)
    order = times.argsort(descending=True, stable=True)
    pairs = zip(wrong[order].tolist(), times[order].tolist(), strict=True)
    confusions = [(pair // classes, pair % classes, n) for pair, n in pairs]
    numbers = [] if groups is None else groups.unique().tolist()
    by_group = {g: Share(int(right[groups == g].sum()), int((groups == g).sum())) for g in numbers}
    by_class = [Share(hit, count) for hit, count in zip(hits, counts, strict=True)]
    return Score(Share(int(right.sum()), len(right)), by_class, by_group, confusions)


def gain(better: Tensor, worse: Tensor) -> tuple[float, tuple[float, float]]:
    """How much more often one is right than the other on the same examples, with its 95 % interval.

    better, worse: (m,) bool, whether each example was labelled right. The interval is Newcombe's for paired shares
    (Statistics in Medicine 17, 1998, method 8), without his correction of their correlation.
    """
    one, other = (Share(int(right.sum()), len(right)) for right in (better, worse))
    difference = one.value - other.value
    (low, high), (other_low, other_high) = one.interval, other.interval
    spread = one.value * (1 - one.value) * other.value * (1 - other.value)
    both = float((better & worse).double().mean()) - one.value * other.value
    alike = both / math.sqrt(spread) if spread else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * alike * a * b + b * b))

    down = reach(one.value - low, other_high - other.value)
    up = reach(high - one.value, other.value - other_low)
    return difference, (difference - down, difference + up)
