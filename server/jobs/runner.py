"""Long work in the background: one job runs at a time, owners in turn; jobs are watched, cancelled and kept."""

import asyncio
import functools
import logging
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from covervlm.server.core.caller import Caller
from covervlm.server.core.errors import Conflict, QuotaExceeded, ResourceError
from covervlm.server.core.fairness import FairTurns
from covervlm.server.store import Store
from covervlm.server.store.records import RESTARTED, JobRecord

log = logging.getLogger(__name__)

_UNTOLD = 1000
"""How many outcomes that could not be written to disk are remembered."""
_BEGUN = 16
"""Jobs that have begun, each of another owner; all but one of them pause."""


class JobError(Exception):
    """A job cannot succeed; `code` and message are shown to its owner."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Cancelled(Exception):
    """Raised inside a job that its owner cancelled."""


class Reporter:
    """How a job reports progress; a call blocks while the job is paused, and raises Cancelled once it has to end."""

    def __init__(self, publish: Callable[[], None]) -> None:
        self._publish = publish
        self._cancelled = threading.Event()
        self._may_go_on = threading.Event()
        self._pausing: Callable[[], object] = lambda: None
        self._started = time.monotonic()
        self._told = 0.0
        self.progress: Mapping[str, Any] = {}

    def __call__(self, share: float, **details: Any) -> None:
        """`share` of the work is done, in [0, 1]; the time left follows. Published at most ten times a second."""
        self.check()
        now = time.monotonic()
        if share < 1 and now - self._told < 0.1:
            return
        self._told = now
        elapsed = now - self._started
        left = elapsed * (1 - share) / share if share > 0 else None
        eta = None if left is None else round(left, 2)
        self.progress = {"share": round(share, 4), "eta_seconds": eta, **details}
        self._publish()

    def check(self) -> None:
        if not self._may_go_on.is_set():
            self._pausing()
            self._may_go_on.wait()
        if self._cancelled.is_set():
            raise Cancelled

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        self._cancelled.set()
        self._may_go_on.set()

    def pause(self, pausing: Callable[[], object]) -> None:
        """The job stops at its next call, which calls `pausing` first, until `go_on`."""
        self._pausing = pausing
        if not self.cancelled:
            self._may_go_on.clear()

    def go_on(self) -> None:
        self._may_go_on.set()


Work = Callable[[Reporter], Mapping[str, Any] | None]
"""Runs in a thread. Returns the job's result, or None where it has stored that itself."""


@dataclass(eq=False)
class _Running:
    """An unfinished job; `stored` once the store has its final state, which is here until then."""

    job: JobRecord
    reporter: Reporter
    task: asyncio.Task[None] | None = None
    state: str = "queued"
    stored: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def now(self) -> JobRecord:
        return replace(self.job, state=self.state, progress=self.reporter.progress)


class JobRunner:
    """Unfinished jobs live here, finished ones in the store, which is asked in threads. Called on the event loop.

    An owner's jobs run one after another. Where several owners have jobs, each of them pauses after `turn_seconds`.
    """

    def __init__(self, store: Store, *, max_unfinished: int = 8, turn_seconds: float = 5.0) -> None:
        self._turn_seconds = turn_seconds
        self._store = store
        self._max_unfinished = max_unfinished
        self._pool = ThreadPoolExecutor(_BEGUN, thread_name_prefix="jobs")
        self._seats = FairTurns(_BEGUN)
        self._turns = FairTurns(1)
        self._lines: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._running: dict[str, _Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._submitting = asyncio.Lock()
        self._stopping = False
        self._untold: OrderedDict[str, JobRecord] = OrderedDict()

    def unfinished(self, owner: str) -> int:
        """Jobs that count against the owner's limit; cancelled ones do not, although one may have a step to finish."""
        return sum(entry.job.owner == owner and not entry.reporter.cancelled for entry in self._running.values())

    async def submit(
        self, caller: Caller, kind: str, work: Callable[[str], Work], *, method: str | None = None, size: int = 0
    ) -> JobRecord:
        """Queue `work(job_id)`, which holds `size` bytes until it ends. Raises QuotaExceeded or EngineOverloaded."""
        loop, owner = asyncio.get_running_loop(), caller.owner
        async with self._submitting:  # otherwise many at once would all be counted as the first
            if self.unfinished(owner) >= self._max_unfinished:
                limit = self._max_unfinished
                raise QuotaExceeded(
                    f"{limit} jobs are queued or running, the most allowed; wait for one or cancel one."
                )
            release = caller.keep(size)
            try:
                job = await self._store.soon(self._store.add_job, owner, kind, method)
            except BaseException:
                release()
                raise
            entry = _Running(job, Reporter(lambda: _tell(loop, entry)))
            self._running[job.id] = entry
        entry.task = loop.create_task(self._run(job.id, entry, work(job.id)))
        self._tasks.add(entry.task)
        entry.task.add_done_callback(self._tasks.discard)
        entry.task.add_done_callback(lambda _: release())
        return job

    async def get(self, owner: str, job: str) -> JobRecord | None:
        """A job of this owner as it stands now."""
        entry = self._running.get(job)
        if entry is not None and not entry.stored:
            return entry.now() if entry.job.owner == owner else None
        stored = await self._store.soon(self._store.job, owner, job)
        return stored if stored is None or stored.finished is not None else self._untold.get(job, stored)

    async def page(
        self, owner: str, *, limit: int, after: str | None, newest_first: bool
    ) -> tuple[list[JobRecord], bool]:
        """At most `limit` jobs without their results, from the one behind `after`, and whether there are more."""
        jobs = await self._store.soon(self._store.jobs, owner, limit=limit + 1, after=after, newest_first=newest_first)
        return [self._latest(job) for job in jobs[:limit]], len(jobs) > limit

    def _latest(self, stored: JobRecord) -> JobRecord:
        if stored.finished is not None:
            return stored
        entry = self._running.get(stored.id)
        return self._untold.get(stored.id, stored) if entry is None or entry.stored else entry.now()

    async def watch(self, owner: str, job: str) -> AsyncGenerator[JobRecord, None]:
        """The job now and after every change, its final state last; slow readers miss states only in between."""
        while True:
            entry = self._running.get(job)
            changed = entry.changed if entry is not None else None
            current = await self.get(owner, job)
            if current is None:
                return
            yield current
            if current.finished is not None or changed is None:
                return
            await changed.wait()

    async def cancel(self, owner: str, job: str) -> JobRecord | None:
        """Ask a job to end; a queued one ends at once, a running one within an iteration. Finished ones stay."""
        current = await self.get(owner, job)
        entry = self._running.get(job)
        if current is None or entry is None:
            return current
        entry.reporter.cancel()
        if entry.state == "queued":
            await self._store.soon(self._finish, entry, job, "cancelled")
            if entry.state == "queued" and entry.task is not None:
                entry.task.cancel()  # so that the memory it holds is given back
            _notify(entry)
        return await self.get(owner, job)

    async def forget(self, owner: str, job: str) -> JobRecord | None:
        """Delete a finished job and its result; its last state. Raises Conflict for one that has not finished."""
        current = await self.get(owner, job)
        if current is not None and not await self._store.soon(self._store.delete_job, owner, job):
            raise Conflict(f"The job '{job}' has not finished; cancel it first.", code="job_unfinished")
        return current

    async def stop(self) -> None:
        """Cancel what runs; each such job is marked failed as it would be after a crash."""
        self._stopping = True
        for entry in self._running.values():
            entry.reporter.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._pool.shutdown(wait=True)

    async def _run(self, job: str, entry: _Running, work: Work) -> None:
        owner = entry.job.owner
        try:
            async with self._lines[owner], self._seats.turn(owner):
                await self._in_turns(job, entry, work)
        finally:
            del self._running[job]
            if not any(other.job.owner == owner for other in self._running.values()):
                self._lines.pop(owner, None)
            _notify(entry)

    async def _in_turns(self, job: str, entry: _Running, work: Work) -> None:
        loop, owner = asyncio.get_running_loop(), entry.job.owner
        working: asyncio.Future[None] | None = None
        while working is None or not working.done():
            async with self._turns.turn(owner):
                entry.reporter.go_on()
                working = working or loop.run_in_executor(self._pool, self._work, job, entry, work, loop)
                while not working.done():
                    await asyncio.wait([working], timeout=self._turn_seconds)
                    if len(self._turns) > 1:
                        paused = loop.create_future()
                        entry.reporter.pause(functools.partial(loop.call_soon_threadsafe, _resolve, paused))
                        await asyncio.wait([working, paused], return_when=asyncio.FIRST_COMPLETED)
                        break
        await working

    def _work(self, job: str, entry: _Running, work: Work, loop: asyncio.AbstractEventLoop) -> None:
        """In the pool's thread: run, and store the outcome before anybody can see it."""
        finish = functools.partial(self._finish, entry, job)
        try:
            entry.reporter.check()
            self._store.start_job(job)
            entry.state = "running"
            _tell(loop, entry)
            result = work(entry.reporter)
            finish("succeeded", result=result)
        except Cancelled:
            if self._stopping:
                finish("failed", error=RESTARTED)
            else:
                finish("cancelled")
        except (JobError, ResourceError) as error:
            finish("failed", error={"code": error.code, "message": str(error)})
        except Exception:
            log.exception("job %s failed", job)
            message = "The server failed while it ran this job; if it happens again, report the job's id."
            finish("failed", error={"code": "internal_error", "message": message})

    def _finish(
        self,
        entry: _Running,
        job: str,
        state: str,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, str] | None = None,
    ) -> None:
        """Store a job's outcome. A failure that cannot be stored is kept in memory, or nobody would learn of it."""
        progress = entry.reporter.progress
        try:
            self._store.finish_job(job, state, progress=progress, result=result, error=error)
            entry.stored = True
        except Exception:
            if state == "succeeded":
                raise
            log.exception("the outcome of job %s cannot be stored; the server remembers it until it stops", job)
            job_now = replace(entry.job, state=state, finished=time.time(), progress=progress, error=error)
            self._untold[job] = job_now
            while len(self._untold) > _UNTOLD:
                self._untold.popitem(last=False)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _notify(entry: _Running) -> None:
    """Wake everyone who waits now; whoever comes later waits for the next change."""
    entry.changed.set()
    entry.changed = asyncio.Event()


def _tell(loop: asyncio.AbstractEventLoop, entry: _Running) -> None:
    """From the job's thread."""
    loop.call_soon_threadsafe(_notify, entry)
