"""MMTok's selection on the device: affinity and greedy, beside the times published for it."""

from collections.abc import Iterator, Sequence
from itertools import product

import torch
from selection import scene
from torch import Tensor

from covervlm.kernels import coverage_affinity, greedy_max_coverage
from gpu.clock import WARM_UPS, milliseconds
from gpu.device import DEVICE
from gpu.sizes import Sizes
from gpu.table import Table

DTYPES = (torch.float32, torch.float16)
PUBLISHED = {(1, 576, 32): "1.27", (1, 2880, 160): "6.42"}
"""Milliseconds of MMTok's release: the first is for this size, on an A6000; the second is taken to be for this one."""


def run(sizes: Sizes) -> Iterator[Table]:
    """The table as far as it is measured, after every row."""
    columns = ("images x n -> k", "d", "dtype", "affinity ms", "greedy ms", "both ms", "published ms")
    note = (
        f"Medians of {sizes.repetitions} calls after {WARM_UPS}, each alone on an idle device, launching included, "
        "inputs in the cache as a tower leaves them. Published: MMTok's release, 1.27 ms for 576 -> 32 on an A6000; "
        "6.42 ms is published without its size at hand and set beside the largest."
    )
    rows: list[list[str]] = []
    for (images, n, k), width, dtype in product(sizes.selections, sizes.widths, DTYPES):
        parts = [part.to(dtype) for part in scene(images, n, width, str(DEVICE))]
        times = _times(parts, k, sizes.repetitions)
        cells = [f"{images} x {n:,} -> {k}", f"{width:,}", str(dtype).removeprefix("torch.")]
        rows.append([*cells, *(f"{time:.3f}" for time in times), PUBLISHED.get((images, n, k), "")])
        yield Table(columns, list(rows), note)


def _times(parts: Sequence[Tensor], k: int, repetitions: int) -> list[float]:
    """Milliseconds of the affinity, of the greedy, and of one after the other."""

    def affinity() -> Tensor:
        return coverage_affinity(*parts, backend="triton", check_finite=False)

    def greedy(matrix: Tensor) -> Tensor:
        return greedy_max_coverage(matrix, k, backend="triton", check_finite=False)

    matrix = affinity()
    return [milliseconds(call, repetitions) for call in (affinity, lambda: greedy(matrix), lambda: greedy(affinity()))]
