"""MMTok: keep the tokens that best cover the question's words and the image (arXiv 2508.18264)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from covervlm.pruners.base import Pruner
from covervlm.pruners.inputs import PruneInput
from covervlm.pruners.objective import Objective


@dataclass(frozen=True)
class MMTok(Pruner):
    """Greedy maximum coverage of text and vision rows; at least 1 - 1/e of the best set of its size."""

    uses_text: ClassVar[bool] = True

    def pick(self, inputs: Sequence[PruneInput], counts: Sequence[int], objective: Objective) -> list[Tensor]:
        return objective.maximise(counts)
