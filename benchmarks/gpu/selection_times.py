"""MMTok's selection on the device: affinity and greedy, beside the times published for it."""

from collections.abc import Iterator

from selection import scene

from covervlm.kernels import coverage_affinity, greedy_max_coverage
from gpu.clock import WARM_UPS, milliseconds
from gpu.device import DEVICE
from gpu.sizes import Sizes
from gpu.table import Table

PUBLISHED = {(1, 576, 32): "1.27", (1, 2880, 160): "6.42"}
"""Milliseconds of MMTok's release: the first is for this size, on an A6000; the second is taken to be for this one."""


def run(sizes: Sizes) -> Iterator[Table]:
    """The table as far as it is measured, after every row."""
    columns = ("images x n -> k", "d", "affinity ms", "greedy ms", "both ms", "published ms")
    note = (
        f"float32; medians of {sizes.repetitions} calls after {WARM_UPS}, each alone on an idle device, launching "
        "included, inputs in the cache as a tower leaves them. Published: MMTok's release, 1.27 ms for 576 -> 32 on an "
        "A6000; 6.42 ms is published without its size at hand and set beside the largest."
    )
    rows: list[list[str]] = []
    for images, n, k in sizes.selections:
        for width in sizes.widths:
            parts = scene(images, n, width, str(DEVICE))
            matrix = coverage_affinity(*parts, backend="triton", check_finite=False)
            times = [
                milliseconds(call, sizes.repetitions)
                for call in (
                    lambda p=parts: coverage_affinity(*p, backend="triton", check_finite=False),
                    lambda m=matrix, k=k: greedy_max_coverage(m, k, backend="triton", check_finite=False),
                    lambda p=parts, k=k: greedy_max_coverage(
                        coverage_affinity(*p, backend="triton", check_finite=False),
                        k,
                        backend="triton",
                        check_finite=False,
                    ),
                )
            ]
            size = f"{images} x {n:,} -> {k}"
            rows.append([size, f"{width:,}", *(f"{time:.3f}" for time in times), PUBLISHED.get((images, n, k), "")])
            yield Table(columns, list(rows), note)
