"""Two ways of answering the same questions: on how many they differ, and McNemar's exact test."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb


@dataclass(frozen=True)
class Pair:
    """Two methods on the same questions: how many of them, parts of answers counted in part, only one has right."""

    only_first: float
    only_second: float
    questions: int

    @property
    def difference(self) -> float:
        """How much is right of the first less how much is of the second, as a share of the questions."""
        return (self.only_first - self.only_second) / self.questions


@dataclass(frozen=True)
class PairedComparison(Pair):
    """With McNemar's exact two-sided p. Here answers are right or wrong as a whole."""

    p: float


def paired(first: Sequence[float], second: Sequence[float]) -> Pair:
    """first, second: of each answer, the share that is right. Raises ValueError unless there are equally many."""
    if len(first) != len(second):
        counts = f"{len(first)} and {len(second)}"
        raise ValueError(f"the methods were asked {counts} questions; a paired test needs the same ones")
    only_first = sum(max(0, a - b) for a, b in zip(first, second, strict=True))
    only_second = sum(max(0, b - a) for a, b in zip(first, second, strict=True))
    return Pair(only_first, only_second, len(first))


def compare(first: Sequence[bool], second: Sequence[bool]) -> PairedComparison:
    """McNemar's exact test, by which either is as likely to be right on a question that only one of them gets right."""
    pair = paired([bool(one) for one in first], [bool(one) for one in second])
    only_first, only_second = int(pair.only_first), int(pair.only_second)
    discordant = only_first + only_second
    tail = sum(comb(discordant, i) for i in range(min(only_first, only_second) + 1))
    return PairedComparison(only_first, only_second, pair.questions, min(1.0, 2 * tail / 2**discordant))
