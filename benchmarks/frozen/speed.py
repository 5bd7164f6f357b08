"""Time and memory at full size."""

import ctypes
import gc
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.clip.choice import BASELINES, candidates, choose
from covervlm.server.clip.methods.contracts import Examples
from covervlm.server.clip.methods.linear import Linear
from covervlm.server.clip.methods.sea import SeA

Made = TypeVar("Made")


def speed(n: int) -> list[str]:
    """One fit of each method, in the space of `space`."""
    x, y, centers, asked, others = space(n)
    lines = head("Speed", x, centers)
    for method in (Linear(), SeA()):
        fitted, cost = measured(partial(method.fit, Examples(x, labels=y)))
        right = float((fitted.logits(asked).argmax(1) == others).float().mean())
        lines.append(f"| {type(method).__name__} | {cost} | {100 * right:.1f} % |")
    return [*lines, ""]


def job(n: int) -> list[str]:
    """All that a job of `sea` learns: each eta and `linear` on four fifths of the examples, the best on all of them."""
    x, y, centers, asked, others = space(n)
    lines = head("A whole job", x, centers)
    choice, cost = measured(partial(choose, Examples(x, labels=y), candidates("sea", {}), beside=BASELINES))
    right = float((choice.head.logits(asked).argmax(1) == others).float().mean())
    lines.append(f"| sea, eta {choice.best.candidate.parameters['eta']} chosen | {cost} | {100 * right:.1f} % |")
    return [*lines, ""]


def space(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """n features of 768 dimensions in 1,000 classes with their labels, the classes' centres, and 5,000 others.

    Features are random about their classes' centres.
    """
    generator = torch.Generator().manual_seed(0)
    d, count = 768, 1000
    centers = normalize(torch.randn(count, d, generator=generator), dim=1)

    def drawn(m: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(count, (m,), generator=generator)
        return normalize(centers[y] + torch.randn(m, d, generator=generator) * 3 / d**0.5, dim=1), y

    x, y = drawn(n)
    return x, y, centers, *drawn(5000)


def head(title: str, x: Tensor, centers: Tensor) -> list[str]:
    lines = [f"## {title} at {len(x):,} x {x.shape[1]}, {len(centers):,} classes", ""]
    lines += [f"{torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}.", ""]
    return [
        *lines,
        "| what | seconds | core-seconds | MiB beyond the inputs | right on others |",
        "|---|" + "---:|" * 4,
    ]


def measured(work: Callable[[], Made]) -> tuple[Made, str]:
    """What it makes, and cells of its seconds, core-seconds and most memory at a time."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the work before has left would hide what this one needs
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is in use now
    before, begun, used = held("VmRSS"), time.perf_counter(), time.process_time()
    made = work()
    seconds, cores = time.perf_counter() - begun, time.process_time() - used
    return made, f"{seconds:.0f} | {cores:.0f} | {held('VmHWM') - before:.0f}"


def held(field: str) -> float:
    """MiB of this process, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024
