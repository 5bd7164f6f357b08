"""Two ways of answering the same questions: on how many they differ, and McNemar's exact test."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb


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
    if len(first) != len(second):
        counts = f"{len(first)} and {len(second)}"
        raise ValueError(f"the methods were asked {counts} questions; a paired test needs the same ones")
    only_first = sum(1 for a, b in zip(first, second, strict=True) if a and not b)
    only_second = sum(1 for a, b in zip(first, second, strict=True) if b and not a)
    discordant = only_first + only_second
    tail = sum(comb(discordant, i) for i in range(min(only_first, only_second) + 1))
    return PairedComparison(only_first, only_second, len(first), min(1.0, 2 * tail / 2**discordant))
