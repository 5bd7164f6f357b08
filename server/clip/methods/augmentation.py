"""Several clusterings without words: groups by the aspects that a change of the pictures leaves alone."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Lt
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.clip.methods.contracts import Group, Pictures, Placed, Progress


@dataclass(frozen=True)
class Augmentation(Group):
    """Groups by the aspects that changed copies of each picture share with it, such as shape where hues are turned.

    The points are the means of each picture and its copies, without the directions in which copies of one picture
    differ most: those that hold `removed` of that variance. The idea of AugDMC (arXiv 2306.13023) on frozen features.
    """

    seeded_by_words: ClassVar[bool] = False

    removed: Annotated[float, Ge(0), Lt(1)] = 0.7

    def place(self, pictures: Pictures, *, seed: int, progress: Progress) -> Placed:
        if pictures.copies is None:
            raise ValueError("changed copies of the pictures are needed to group by this method")
        copies = normalize(pictures.copies @ pictures.projection.T, dim=2)
        seen = torch.cat([pictures.images[:, None], copies], dim=1)
        means = seen.mean(dim=1)
        directions = varying_directions((seen - means[:, None]).flatten(0, 1), self.removed)
        means = normalize(means, dim=1)
        return Placed(normalize(means - means @ directions @ directions.T, dim=1), pictures.nearest_words())


def varying_directions(differences: Tensor, share: float) -> Tensor:
    """(d, r) orthonormal: the fewest principal directions that hold `share` of the variance of differences (m, d)."""
    values, vectors = torch.linalg.eigh(differences.T @ differences)
    held = values.flip(0).clamp_min(0).cumsum(0)
    count = int((held < share * held[-1]).sum()) + 1 if share * held[-1] > 0 else 0
    return vectors.flip(1)[:, :count]
