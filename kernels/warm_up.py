"""Compilation ahead of the first request."""

from collections.abc import Sequence

import torch

from covervlm.kernels.coverage_affinity import coverage_affinity
from covervlm.kernels.greedy_max_coverage import greedy_max_coverage


def warm_up(
    device: torch.device | str = "cpu",
    *,
    tokens: Sequence[int] = (576,),
    batches: Sequence[int] = (1, 5),
    dtype: torch.dtype = torch.float32,
) -> None:
    """Run both kernels on `device`, so that no request waits for their compilation.

    tokens, batches, dtype: token counts per item, items per call and dtype of the inputs to expect. CUDA code is
    compiled for each; on the CPU one compilation serves all and lasts in numba's cache: `__pycache__` beside the
    modules, a directory of the user's where that is read-only, or NUMBA_CACHE_DIR.
    """
    for n in tokens:
        for batch in batches:
            rows = torch.arange(n * 16, device=device).remainder(97).reshape(1, n, 16).expand(batch, n, 16).to(dtype)
            affinity = coverage_affinity(rows[:, :8], rows, rows)
            # Triton compiles arguments that are 1, multiples of 16, and others apart; usual budgets are multiples.
            greedy_max_coverage(affinity, 16, allowed=torch.ones(batch, n, dtype=torch.bool, device=device))
