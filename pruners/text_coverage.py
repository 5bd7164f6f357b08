"""Text coverage: MMTok's text rows alone (arXiv 2508.18264)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from covervlm.pruners.base import Pruner
from covervlm.pruners.inputs import PruneInput
from covervlm.pruners.objective import Objective


@dataclass(frozen=True)
class TextCoverage(Pruner):
    """Greedy maximum coverage of the question's words.

    A word is fully covered by its best token, so after about one pick per word no token gains anything, and the lowest
    indices follow. Without text, vision rows stand in.
    """

    uses_text: ClassVar[bool] = True

    def pick(self, inputs: Sequence[PruneInput], counts: Sequence[int], objective: Objective) -> list[Tensor]:
        return objective.maximise(counts, "text")
