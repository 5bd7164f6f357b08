"""What the diversity methods compare: unit vectors of an image's tokens, and how much each token counts."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

_DOMINANT = 0.5
"""Share of the centred variance from which on one channel would decide all similarities."""


class View(Protocol):
    """A way to compare tokens."""

    def __call__(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of unit length, whose products are the similarities, and weights in [0, 1].

        tokens: (n, d) projector outputs, any float dtype. Returns (n, d) and (n,) float64.
        """
        ...


def plain(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens as they are; all count alike."""
    units = normalize(tokens.double(), dim=1, eps=1e-8)
    return units, units.new_ones(len(units))


def centred(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Cen-Prune (arXiv 2608.30263): what tokens have in common tells none of them apart.

    Similarity is of the tokens less their mean; where one channel holds more than half of the variance that is left,
    every channel is divided by its standard deviation. A token counts by its distinctiveness, the negative mean cosine
    of the uncentred token to all others, scaled to [0, 1] here, since the paper's summary gives no scale.
    """
    raw, _ = plain(tokens)
    rest = tokens.double() - tokens.double().mean(dim=0)
    variance = rest.square().mean(dim=0)
    if variance.max() > _DOMINANT * variance.sum():
        rest = rest / variance.sqrt().where(variance > 0, 1)
    others = raw @ raw.sum(dim=0) - raw.square().sum(dim=1)
    return normalize(rest, dim=1, eps=1e-8), scaled(-others / max(1, len(raw) - 1))


def scaled(scores: Tensor) -> Tensor:
    """Scores (n,) moved to [0, 1]; 1 everywhere where they differ by rounding alone."""
    low, high = scores.aminmax()
    return (scores - low) / (high - low) if high - low > 1e-12 else torch.ones_like(scores)
