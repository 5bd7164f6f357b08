"""No pruning, as a method like any other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from covervlm.pruners.base import PruneInput, Pruner, Selection


@dataclass(frozen=True)
class KeepAll(Pruner):
    """Every token, whatever the budget."""

    nested: ClassVar[bool] = False

    def choose(self, inputs: Sequence[PruneInput], keep: int | Sequence[int]) -> list[Selection]:
        return super().choose(inputs, [max(len(image.tokens), 1) for image in inputs])
