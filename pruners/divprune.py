"""DivPrune: keep tokens that differ from each other as much as they can (arXiv 2503.02175)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.pruners.base import Objective, PruneInput, Pruner


@dataclass(frozen=True)
class DivPrune(Pruner):
    """Greedy max-min diversity of the projector outputs under cosine distance (section 3).

    The first pick is the token whose nearest other token is farthest away; each further one is the token whose
    smallest distance to the picks so far is largest. The lowest index wins ties.
    """

    def pick(self, inputs: Sequence[PruneInput], counts: Sequence[int], objective: Objective) -> list[Tensor]:
        return [_spread(image, count) for image, count in zip(inputs, counts, strict=True)]


def _spread(image: PruneInput, count: int) -> Tensor:
    places = torch.arange(len(image.tokens), device=image.tokens.device)
    if image.allowed is not None:
        places = places[image.allowed]
    tokens = normalize(image.tokens[places].float(), dim=1, eps=1e-8)
    distances = (1 - tokens @ tokens.T).fill_diagonal_(torch.inf)
    nearest = distances.amin(dim=1)
    picked = torch.empty(count, dtype=torch.int64, device=places.device)
    for step in range(count):
        pick = nearest.argmax()
        picked[step] = pick
        nearest = distances[pick].clone() if step == 0 else torch.minimum(nearest, distances[pick])
        nearest[picked[: step + 1]] = -torch.inf
    return places[picked]
