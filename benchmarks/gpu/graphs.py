"""The selection as a CUDA graph: whether it is captured, picks the same for new inputs, and how long a replay takes."""

from collections.abc import Callable, Iterator

import torch
from selection import scene
from torch import Tensor

from covervlm.kernels import coverage_affinity, greedy_max_coverage
from gpu.clock import WARM_UPS, milliseconds
from gpu.device import DEVICE, INTERPRETED
from gpu.sizes import Sizes
from gpu.table import Table


def run(sizes: Sizes) -> Iterator[Table]:
    """The table as far as it is measured. Raises what capturing raises, and AssertionError where picks differ."""
    columns = ("images x n -> k", "captured", "replay ms", "plain call ms")
    if INTERPRETED:
        yield Table(columns, [["", "not tried: there is no CUDA device", "", ""]], "")
        return
    note = f"d = {sizes.widths[0]:,}, float32; medians of {sizes.repetitions} after {WARM_UPS}."
    rows: list[list[str]] = []
    for images, n, k in sizes.selections:
        parts = scene(images, n, sizes.widths[0], str(DEVICE))

        def select(parts: tuple[Tensor, ...] = parts, k: int = k) -> Tensor:
            affinity = coverage_affinity(*parts, backend="triton", check_finite=False)
            return greedy_max_coverage(affinity, k, backend="triton", check_finite=False)

        replay, picks = captured(select)
        for part in parts:
            part.copy_(part.flip(1))  # the same rows in another order
        replay()
        same = torch.equal(picks, select())
        assert same, f"{images} x {n} -> {k}: a replay picks other tokens"
        times = [milliseconds(call, sizes.repetitions) for call in (replay, select)]
        rows.append([f"{images} x {n:,} -> {k}", "yes, same picks", *(f"{time:.3f}" for time in times)])
        yield Table(columns, list(rows), note)


def captured(call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """What runs the kernels of a call again, and the tensor that they write to."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph.replay, result
