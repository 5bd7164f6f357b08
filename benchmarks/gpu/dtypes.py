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

LARGEST_LOSS = 1e-5
"""Of coverage, where rounding decides between candidates."""


def run(sizes: Sizes) -> Table:
    """Its problem: a dtype whose affinity is farther off than LARGEST_ERROR, or whose picks cover less."""
    n, k, width = sizes.dtypes
    rows, problem = [], ""
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
        if not (error < LARGEST_ERROR and less < LARGEST_LOSS):  # NaN is a problem too
            problem = f"{dtype}: an error of {error:.1e}, and a coverage that is {less:.1e} lower"
    columns = (
        "inputs",
        "largest error of the affinity, of its row's largest",
        "picks alike",
        "coverage below float64's",
    )
    note = f"{n:,} tokens to {k}, d = {width:,}; the reference reads the same rounded inputs."
    return Table(columns, rows, note, problem)


def _covered(affinity: torch.Tensor, picks: list[int]) -> float:
    return float(affinity[:, picks].amax(1).sum())
