"""Compilation ahead of the first request."""

import torch

from covervlm.kernels.coverage_affinity import coverage_affinity
from covervlm.kernels.greedy_max_coverage import greedy_max_coverage


def warm_up(device: torch.device | str = "cpu") -> None:
    """Run both kernels once on `device`, so that no request waits for their compilation."""
    rows = torch.eye(4, device=device)
    affinity = coverage_affinity(rows[:2], rows, rows)
    greedy_max_coverage(affinity, 2)
    greedy_max_coverage(affinity[None], [2], columns=[3])
