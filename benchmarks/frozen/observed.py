"""CoKe's time for 64 images that come together, alone and as a server's stream."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from covervlm.server.clip.classifiers import ranked
from covervlm.server.clip.methods.coke import CoKe
from covervlm.server.clip.methods.contracts import Prediction
from covervlm.server.clip.sessions import Sessions, SnapshotInterval
from covervlm.server.store import Store
from covervlm.server.store.database import Database
from frozen.speed import space

CALLS = 300


def observe(n: int) -> list[str]:
    """The method, the product that it cannot do without, and a stream with all that a server adds, but for encoding."""
    x, _, centers, _, _ = space(min(n, 64 * CALLS))
    calls = x.split(64)
    stream = CoKe().open(centers.T.contiguous(), len(x))
    product: list[float] = []
    method: list[float] = []
    for rows in calls:  # in turns, so that both see the same machine
        timed(product, partial(linear, rows, centers))
        timed(method, partial(stream.observe_all, rows))
    found = {"the product with the centres alone": product, "CoKe, product and all": method}
    for saved, interval in (("seldom", SnapshotInterval(10**9, 3600.0)), ("after each call", SnapshotInterval())):
        found[f"a stream with keys and ranking, saved {saved}"] = asyncio.run(in_session(calls, centers, interval))
    load = f"{torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}."
    title = f"## CoKe, 64 images of {x.shape[1]} dimensions, {len(centers):,} groups"
    lines = [title, "", load, "", "| what | ms at the median | at the tenth percentile |", "|---|---:|---:|"]
    for what, times in found.items():
        fast, median = np.percentile(times, [10, 50])
        lines.append(f"| {what} | {median:.2f} | {fast:.2f} |")
    return [*lines, ""]


def timed(times: list[float], work: Callable[[], object]) -> None:
    """Adds its milliseconds."""
    begun = time.perf_counter()
    work()
    times.append(1000 * (time.perf_counter() - begun))


async def in_session(calls: Sequence[Tensor], centers: Tensor, interval: SnapshotInterval) -> list[float]:
    """Milliseconds of each call."""
    store = Store(Database(None))
    sessions = Sessions(store, interval)
    names = [f"group {number}" for number in range(len(centers))]
    about = {"classes": names, "horizon": 64 * len(calls), "parameters": {}, "fingerprint": ""}
    opened = await sessions.create("benchmark", about, centers.T.contiguous(), method="coke")
    times = []
    for number, rows in enumerate(calls):
        begun = time.perf_counter()
        await sessions.observe("benchmark", opened["id"], rows, partial(told, names), key=str(number), digest="")
        times.append(1000 * (time.perf_counter() - begun))
    await sessions.stop()
    store.close()
    return times


def told(names: Sequence[str], predictions: Sequence[Prediction]) -> Mapping[str, Any]:
    return {"top": ranked(torch.stack([one.combined for one in predictions]), names, 5)}
