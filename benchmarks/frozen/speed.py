"""Time and memory at full size."""

import os
import resource
import time

import numpy as np
import torch
from torch.nn.functional import normalize

from covervlm.server.clip.methods.coke import CoKe
from covervlm.server.clip.methods.contracts import Examples
from covervlm.server.clip.methods.linear import Linear
from covervlm.server.clip.methods.sea import SeA


def speed(n: int) -> list[str]:
    """n features of 768 dimensions in 1,000 classes, random about their classes' centres."""
    generator = torch.Generator().manual_seed(0)
    d, count = 768, 1000
    centers = normalize(torch.randn(count, d, generator=generator), dim=1)
    y = torch.randint(count, (n,), generator=generator)
    x = normalize(centers[y] + torch.randn(n, d, generator=generator) * 3 / d**0.5, dim=1)
    lines = [f"## Speed at {n:,} x {d}, {count:,} classes", "", f"Load average {os.getloadavg()[0]:.1f}.", ""]
    lines += ["| what | seconds | core-seconds | MiB beyond the inputs | right on others |", "|---|" + "---:|" * 4]
    stream = CoKe().open(centers.T.contiguous(), n)
    taken = []
    for rows in x[: 64 * 300].split(64):
        begun = time.perf_counter()
        stream.observe_all(rows)
        taken.append(1000 * (time.perf_counter() - begun))
    fast, median = np.percentile(taken, [10, 50])
    others = torch.randint(count, (5000,), generator=generator)
    asked = normalize(centers[others] + torch.randn(5000, d, generator=generator) * 3 / d**0.5, dim=1)
    for method in (Linear(), SeA()):
        before, begun, used = peak(), time.perf_counter(), time.process_time()
        head = method.fit(Examples(x, labels=y))
        seconds, cores = time.perf_counter() - begun, time.process_time() - used
        right = float((head.logits(asked).argmax(1) == others).float().mean())
        name = type(method).__name__
        lines.append(f"| {name} | {seconds:.0f} | {cores:.0f} | {peak() - before:.0f} | {100 * right:.1f} % |")
    return [*lines, "", f"CoKe, 64 images: {median:.2f} ms at the median, {fast:.2f} ms at the tenth percentile.", ""]


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
