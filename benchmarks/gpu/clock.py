"""How long a call takes: by CUDA events on a GPU, by the wall clock elsewhere."""

import statistics
import time
from collections.abc import Callable

import torch

from gpu.device import INTERPRETED

WARM_UPS = 3


def milliseconds(call: Callable[[], object], repetitions: int) -> float:
    """Median of single calls on an idle device after WARM_UPS; what the CPU needs to launch kernels is part of it."""
    for _ in range(WARM_UPS):
        call()
    return statistics.median(_once(call) for _ in range(repetitions))


def _once(call: Callable[[], object]) -> float:
    if INTERPRETED:
        started = time.perf_counter()
        call()
        return (time.perf_counter() - started) * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)
