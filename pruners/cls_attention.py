"""CLS attention: keep what the vision tower's own summary of the image attends to.

This is FasterVLM (arXiv 2412.01818): attention of the penultimate layer's CLS token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from covervlm.pruners.base import Objective, PruneInput, Pruner, highest


@dataclass(frozen=True)
class CLSAttention(Pruner):
    """The tokens with the most CLS attention, the lowest index on ties."""

    uses_cls_attention: ClassVar[bool] = True

    def pick(self, inputs: Sequence[PruneInput], counts: Sequence[int], objective: Objective) -> list[Tensor]:
        picks = []
        for image, count in zip(inputs, counts, strict=True):
            assert image.cls_attention is not None  # checked by the base class
            picks.append(highest(image.cls_attention, count, image.allowed))
        return picks
