"""The Triton kernels on inputs of every dtype, against the formula and a full scan per pick in float64."""

import torch
from selection import plain_affinity, plain_greedy, scene

from covervlm.kernels import coverage_affinity, greedy_max_coverage
from gpu.device import DEVICE
from gpu.sizes import Sizes
from gpu.table import Table

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LARGEST_ERROR = 1e-4
"""Relative to the largest of its row; half-precision inputs are multiplied exactly and added up in float32."""


def run(sizes: Sizes) -> Table:
    """Raises AssertionError where a dtype's affinity is farther off than LARGEST_ERROR, or its picks cover less."""
    n, k, width = sizes.dtypes
    rows = []
    for dtype in DTYPES:
        parts = [part.to(dtype) for part in scene(1, n, width, "cpu")]
        exact = plain_affinity(*(part.double() for part in parts))[0]
        found = coverage_affinity(*(part.to(DEVICE) for part in parts), backend="triton")
        error = float(((found[0].cpu().double() - exact).abs().amax(1) / exact.amax(1)).max())
        picks = greedy_max_coverage(found[0], k, backend="triton").tolist()
        expected = plain_greedy(exact, k)
        alike = len(set(picks) & set(expected)) / k
        less = 1 - _covered(exact, picks) / _covered(exact, expected)
        rows.append([str(dtype).removeprefix("torch."), f"{error:.1e}", f"{alike:.1%}", f"{less:.1e}"])
        assert error < LARGEST_ERROR, f"{dtype}: an error of {error:.1e}"
        assert less < 1e-5, f"{dtype}: the picks cover {less:.1e} less"
    columns = (
        "inputs",
        "largest error of the affinity, of its row's largest",
        "picks alike",
        "coverage below float64's",
    )
    return Table(columns, rows, f"{n:,} tokens to {k}, d = {width:,}; the reference reads the same rounded inputs.")


def _covered(affinity: torch.Tensor, picks: list[int]) -> float:
    return float(affinity[:, picks].amax(1).sum())
