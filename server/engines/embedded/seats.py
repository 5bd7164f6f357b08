"""Whose answers run together: owners in turn, each with as many as leave room for the others."""

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable

from covervlm.server.core.caller import Caller
from covervlm.server.core.fairness import FairQueue
from covervlm.server.engines.embedded.admission import Job
from covervlm.server.engines.embedded.step_limits import StepLimits

_PRESENT = 1.0
"""Seconds that an owner is there without an answer that waits or runs: one who reads an answer, and then asks on."""


def places(max_running: int, caller: Caller) -> int:
    """How many of the answers that run together may be a caller's: one with a key leaves an eighth to others."""
    return max(1, max_running - max(1, max_running // 8)) if caller.has_key else max_running


class Seats:
    """Chooses which waiting jobs run next; used by the engine's thread alone.

    An owner who has all the places of one is passed over. They are `places`, and as long as other owners are there
    `limits.share` of all, because every row of a step may make the others wait longer for theirs.
    """

    def __init__(self, max_running: int, limits: StepLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_running = max_running
        self._limits = limits
        self._clock = clock
        self._seen: dict[Hashable, float] = {}

    def take(self, waiting: FairQueue[Job], running: Iterable[Job]) -> list[Job]:
        """Remove and return waiting jobs that the batch has room for and whose images one step may encode.

        running: the job of every answer that runs.
        """
        jobs: list[Job] = []
        taken: Counter[Hashable] = Counter(job.request.caller.owner for job in running)
        room, images = self._max_running - taken.total(), 0
        self._notice({*taken, *waiting.owners()})

        def has_place(owner: Hashable) -> bool:
            job = waiting.peek_of(owner)
            return not taken[owner] or taken[owner] + job.rows <= self._most(job.request.caller)

        while (owner := next(filter(has_place, waiting.owners()), None)) is not None:
            job = waiting.peek_of(owner)
            images += len(job.pixels)
            if job.rows > room or (jobs and images > self._limits.images):
                break
            room -= job.rows
            taken[owner] += job.rows
            jobs.append(waiting.pop_of(owner))
        return jobs

    def _notice(self, owners: Iterable[Hashable]) -> None:
        now = self._clock()
        self._seen.update(dict.fromkeys(owners, now))
        self._seen = {owner: last for owner, last in self._seen.items() if now - last <= _PRESENT}

    def _most(self, caller: Caller) -> int:
        most = places(self._max_running, caller)
        return min(most, max(1, int(self._limits.share * self._max_running))) if len(self._seen) > 1 else most
