"""The plain greedy loop in torch, a full scan of the affinity per pick: the other backends' reference."""

import torch
from torch import Tensor


def select(
    affinity: Tensor, counts: Tensor, allowed: Tensor, width: int, check_finite: bool, weights: Tensor | None = None
) -> Tensor:
    """Pick counts[b] of the allowed columns of each item; see `greedy_max_coverage.Backend`."""
    if check_finite and not bool(affinity.isfinite().all()):
        raise ValueError("affinity must be finite, but holds NaN or infinity")
    # Sums along the contiguous axis are the same for equal columns; across it, ties would break by rounding.
    columns = affinity.mT.contiguous()
    covered = columns.new_zeros(columns.shape[0], 1, columns.shape[2])
    free = allowed.clone()
    picks = torch.full((columns.shape[0], width), -1, dtype=torch.int64, device=columns.device)
    for step in range(width):
        gains = (columns - covered).clamp_(min=0).sum(dim=2)
        if weights is not None:
            gains *= weights
        gains.masked_fill_(~free, -1.0)
        # argmax may return any of several equal maxima; the first is what the greedy is defined by.
        best = (gains == gains.amax(dim=1, keepdim=True)).int().argmax(dim=1, keepdim=True)
        covered = torch.maximum(covered, columns.take_along_dim(best[:, :, None], dim=1))
        free.scatter_(1, best, False)
        picks[:, step] = torch.where(step < counts, best[:, 0], -1)
    return picks
