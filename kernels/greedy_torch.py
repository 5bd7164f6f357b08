"""The plain greedy loop in torch, a full scan of the affinity per pick: the other backends' reference."""

import torch
from torch import Tensor


def select(affinity: Tensor, counts: Tensor, allowed: Tensor, width: int, check_finite: bool) -> Tensor:
    """Pick counts[b] of the allowed columns of each item; see `greedy_max_coverage.Backend`."""
    if check_finite and not bool(affinity.isfinite().all()):
        raise ValueError("affinity must be finite, but holds NaN or infinity")
    batch, rows, _ = affinity.shape
    covered = affinity.new_zeros(batch, rows, 1)
    free = allowed.clone()
    picks = torch.full((batch, width), -1, dtype=torch.int64, device=affinity.device)
    for step in range(width):
        # In float32 equal columns can get unequal sums, as vector lanes and tails add in different orders.
        gains = (affinity - covered).clamp_(min=0).sum(dim=1, dtype=torch.float64).masked_fill_(~free, -1.0)
        # argmax may return any of several equal maxima; the first is what the greedy is defined by.
        best = (gains == gains.amax(dim=1, keepdim=True)).int().argmax(dim=1, keepdim=True)
        covered = torch.maximum(covered, affinity.take_along_dim(best[:, None], dim=2))
        free.scatter_(1, best, False)
        picks[:, step] = torch.where(step < counts, best[:, 0], -1)
    return picks
