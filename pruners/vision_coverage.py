"""Vision coverage: MMTok's vision rows alone (arXiv 2508.18264)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from covervlm.pruners.base import Pruner
from covervlm.pruners.inputs import PruneInput
from covervlm.pruners.objective import Objective


@dataclass(frozen=True)
class VisionCoverage(Pruner):
    """Greedy maximum coverage of the image by itself: one selection serves every question about it."""

    def pick(self, inputs: Sequence[PruneInput], counts: Sequence[int], objective: Objective) -> list[Tensor]:
        return objective.maximise(counts, "vision")
