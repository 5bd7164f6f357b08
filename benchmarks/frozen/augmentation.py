"""Several clusterings without words, by AugDMC's idea (arXiv 2306.13023) on frozen features: not served."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def without_changes(images: Tensor, copies: Tensor, share: float = 0.7) -> Tensor:
    """(n, d) unit points: the means of images (n, d) and their changed copies (n, v, d), unit rows.

    They lack the directions in which copies of one image differ most, as many as hold `share` of that variance, so that
    they lie together by the aspects that the change leaves alone.
    """
    seen = torch.cat([images[:, None], copies], dim=1)
    means = seen.mean(dim=1)
    directions = varying_directions((seen - means[:, None]).flatten(0, 1), share)
    means = normalize(means, dim=1)
    return normalize(means - means @ directions @ directions.T, dim=1)


def varying_directions(differences: Tensor, share: float) -> Tensor:
    """(d, r) orthonormal: the fewest principal directions that hold `share` of the variance of differences (m, d)."""
    values, vectors = torch.linalg.eigh(differences.T @ differences)
    held = values.flip(0).clamp_min(0).cumsum(0)
    count = int((held < share * held[-1]).sum()) + 1 if share * held[-1] > 0 else 0
    return vectors.flip(1)[:, :count]
