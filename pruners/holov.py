"""HoloV: a budget for every region of the image, so that no highlight takes it all (arXiv 2510.02912)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.pruners.base import Objective, PruneInput, Pruner


@dataclass(frozen=True)
class HoloV(Pruner):
    """Regions share the budget by the scores of their tokens, and each keeps its best, the lowest index on ties.

    A score is the CLS token's attention plus the variance of the token's cosine similarities to the others of its
    region, both divided by their mean over the image. Ours, where the summary at hand is silent: the two terms weigh
    alike, and seats are dealt by Webster's rule (score of the region / (seats so far + 1/2)), under which a larger
    budget takes nothing from any region.

    regions: into how many stretches rows and columns are each cut; without a grid, so many squared stretches.
    """

    regions: Annotated[int, Ge(1), Le(64)] = 4

    uses_cls_attention: ClassVar[bool] = True

    def pick(self, inputs: Sequence[PruneInput], counts: Sequence[int], objective: Objective) -> list[Tensor]:
        return [_seated(image, self.regions)[:count] for image, count in zip(inputs, counts, strict=True)]


def _seated(image: PruneInput, regions: int) -> Tensor:
    """All allowed tokens in pick order."""
    assert image.cls_attention is not None  # checked by the base class
    places = image.places
    features = normalize(image.features[places].double(), dim=1, eps=1e-8)
    region = _regions(image, regions)[places]
    members = [(region == number).nonzero().flatten() for number in region.unique()]
    variance = torch.zeros(len(places), dtype=torch.float64, device=places.device)
    for own in members:
        variance[own] = _variance(features[own])
    scores = _by_mean(image.cls_attention[places].double()) + _by_mean(variance)
    quotients = torch.zeros_like(scores)
    for own in members:
        best = own[scores[own].sort(descending=True, stable=True).indices]
        seats = torch.arange(len(own), dtype=torch.float64, device=places.device)
        quotients[best] = scores[own].sum() / (seats + 0.5)
    return places[quotients.sort(descending=True, stable=True).indices]


def _regions(image: PruneInput, regions: int) -> Tensor:
    """(n,) the number of every token's region."""
    n, device = len(image.tokens), image.tokens.device
    if image.grid is None:
        return torch.arange(n, device=device) * min(n, regions**2) // n
    rows, columns = image.grid
    down = torch.arange(rows, device=device) * min(rows, regions) // rows
    across = torch.arange(columns, device=device) * min(columns, regions) // columns
    return (down[:, None] * regions + across).flatten()


def _variance(features: Tensor) -> Tensor:
    """(m,) how much the cosines of each of m unit rows to the others vary; 0 for fewer than two others."""
    others = len(features) - 1
    if others < 2:
        return features.new_zeros(len(features))
    cosines = (features @ features.T).fill_diagonal_(0)
    mean = cosines.sum(dim=1, keepdim=True) / others
    return (cosines - mean).square().fill_diagonal_(0).sum(dim=1) / others


def _by_mean(scores: Tensor) -> Tensor:
    mean = scores.mean()
    return scores / mean if mean > 0 else scores
