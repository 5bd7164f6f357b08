"""The coverage methods: MMTok (arXiv 2508.18264), and each half of its objective alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from covervlm.pruners.base import Objective, PruneInput, Pruner


@dataclass(frozen=True)
class MMTok(Pruner):
    """Greedy maximum coverage of the question's words and the image; at least 1 - 1/e of the best set of its size."""

    uses_text: ClassVar[bool] = True

    def pick(self, inputs: Sequence[PruneInput], counts: Sequence[int], objective: Objective) -> list[Tensor]:
        return objective.maximise(counts)


@dataclass(frozen=True)
class VisionCoverage(Pruner):
    """Greedy maximum coverage of the image by itself: one selection serves every question about it."""

    def pick(self, inputs: Sequence[PruneInput], counts: Sequence[int], objective: Objective) -> list[Tensor]:
        return objective.maximise(counts, "vision")


@dataclass(frozen=True)
class TextCoverage(Pruner):
    """Greedy maximum coverage of the question's words.

    A word is fully covered by its best token, so after about one pick per word no token gains anything, and the lowest
    indices follow. Without text, vision rows stand in.
    """

    uses_text: ClassVar[bool] = True

    def pick(self, inputs: Sequence[PruneInput], counts: Sequence[int], objective: Objective) -> list[Tensor]:
        return objective.maximise(counts, "text")
