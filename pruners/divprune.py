"""DivPrune: keep tokens that differ from each other as much as they can (arXiv 2503.02175)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from covervlm.pruners.base import Objective, PruneInput, Pruner
from covervlm.pruners.similarity import View, plain


@dataclass(frozen=True)
class DivPrune(Pruner):
    """Greedy max-min diversity of the projector outputs under cosine distance (section 3).

    The first pick is the token whose nearest other token is farthest away; each further one is the token whose
    smallest distance to the picks so far is largest. The lowest index wins ties.
    """

    joins_crops: ClassVar[bool] = True
    view: ClassVar[View] = staticmethod(plain)

    def pick(self, inputs: Sequence[PruneInput], counts: Sequence[int], objective: Objective) -> list[Tensor]:
        picks = []
        for image, count in zip(inputs, counts, strict=True):
            places = image.places
            units, weights = self.view(image.tokens[places])
            # In single precision: below it, what is alike differs by the order in which an engine adds up.
            picks.append(places[_spread(units.float(), weights.float(), count)])
        return picks


def _spread(units: Tensor, weights: Tensor, count: int) -> Tensor:
    """Picks of rows (n, d) of unit length, whose distances count by their weights (n,)."""
    distances = (1 - units @ units.T).fill_diagonal_(torch.inf)
    nearest = distances.amin(dim=1)
    picked = torch.empty(count, dtype=torch.int64, device=units.device)
    for step in range(count):
        scores = nearest * weights
        scores[picked[:step]] = -torch.inf
        pick = scores.argmax()
        picked[step] = pick
        # Of a pick its distance to itself stays, any finite number: it is not picked again.
        row = distances[pick].clone()
        row[pick] = 0
        nearest = row if step == 0 else torch.minimum(nearest, row)
    return picked
