"""A server's queue, replayed with the real budget and the real forecaster on a clock of its own.

The server is a model: it works on one request after the other, for as long as requests of that budget took at capacity
on the machine of docs/load.md, and a request's first token comes when its work is done. Up to eight are in work or
next, what is beyond them waits in the queue that the budget follows.
"""

import asyncio
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from covervlm.server.forecast.counter import Minute
from covervlm.server.forecast.forecaster import Forecaster
from covervlm.server.forecast.history import History
from covervlm.server.limits.adaptive_budget import AdaptiveBudget, BudgetRange

RUNNING = 8
FLOOR, CEILING = 64, 192
PER_SECOND = {CEILING: 1.12, FLOOR: 1.73}
"""Requests that were answered per second at capacity, from docs/load.md: 192 fixed, and adaptive at its floor."""

_TOKEN = (1 / PER_SECOND[CEILING] - 1 / PER_SECOND[FLOOR]) / (CEILING - FLOOR)
_REST = 1 / PER_SECOND[FLOOR] - _TOKEN * FLOOR


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Replay:
    """Of every request: when it came, seconds to its first token, and its budget."""

    came: NDArray[np.float64]
    first_token: NDArray[np.float64]
    budget: NDArray[np.int64]


class Queue:
    """The model server; `take` is told when a request comes."""

    def __init__(self, choose: Callable[[int], int]) -> None:
        self._choose = choose
        self._ends: deque[float] = deque()
        self.served: list[tuple[float, float, int]] = []

    def waiting(self, now: float) -> int:
        while self._ends and self._ends[0] <= now:
            self._ends.popleft()
        return max(0, len(self._ends) - RUNNING)

    def take(self, now: float) -> None:
        budget = self._choose(self.waiting(now))
        end = max(now, self._ends[-1] if self._ends else now) + _REST + _TOKEN * budget
        self._ends.append(end)
        self.served.append((now, end - now, budget))

    def replay(self) -> Replay:
        came, first, budget = zip(*self.served, strict=True)
        return Replay(np.array(came), np.array(first), np.array(budget))


def adaptive(excess: Callable[[], float] = lambda: 0.0) -> AdaptiveBudget:
    return AdaptiveBudget(BudgetRange(FLOOR, CEILING), full_queue=RUNNING // 2, excess=excess)


def fixed(moments: NDArray[np.float64]) -> Replay:
    queue = Queue(lambda waiting: CEILING)
    for now in moments.tolist():
        queue.take(now)
    return queue.replay()


def by_load(moments: NDArray[np.float64]) -> tuple[Replay, dict[int, Minute]]:
    """With --adaptive-budget; and the minutes that a server would have written down."""
    budget = adaptive()
    queue, minutes, last = Queue(budget.observe), {}, -1
    for now in moments.tolist():
        for minute in range(last + 1, int(now // 60) + 1):
            minutes[minute] = Minute(0, budget.crowded(queue.waiting(minute * 60.0)))
            last = minute
        queue.take(now)
        minutes[last].requests += 1
    return queue.replay(), minutes


def anticipating(moments: NDArray[np.float64], past: dict[int, Minute], start: float) -> Replay:
    """With --anticipate too; moments from `start` on, after `past`."""

    async def run(folder: Path) -> Replay:
        history = History(folder)
        history.write(past, now=int(start // 60))
        history.close()
        clock = Clock()
        clock.now = start
        forecaster = Forecaster(folder, crowded=lambda: budget.crowded(queue.waiting(clock.now)), clock=clock)
        budget = adaptive(forecaster.excess)
        queue = Queue(budget.observe)
        await forecaster.start()
        await forecaster.look()
        minute = int(start // 60)
        for now in moments.tolist():
            while minute < now // 60:
                minute += 1
                clock.now = minute * 60.0
                await forecaster.tick()
            clock.now = now
            forecaster.count(now)
            queue.take(now)
        await forecaster.stop()
        return queue.replay()

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(run(Path(folder)))
