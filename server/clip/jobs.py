"""Long work in the background: queued, run one at a time in a thread, watched, cancelled, and kept when finished."""

import asyncio
import functools
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from covervlm.server.resources import Conflict, QuotaExceeded, ResourceError
from covervlm.server.store import Store
from covervlm.server.store.records import RESTARTED, Job

log = logging.getLogger(__name__)

_UNTOLD = 1000
"""How many outcomes that no disk would take are remembered."""


class JobError(Exception):
    """A job cannot succeed; `code` and message are told to its owner."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Cancelled(Exception):
    """Raised inside a job that its owner cancelled."""


class Reporter:
    """What a job tells while it runs; each call raises Cancelled once the job is cancelled."""

    def __init__(self, publish: Callable[[], None]) -> None:
        self._publish = publish
        self._cancelled = threading.Event()
        self._started = time.monotonic()
        self._told = 0.0
        self.progress: Mapping[str, Any] = {}

    def __call__(self, share: float, **details: Any) -> None:
        """`share` of the work is done, in [0, 1]; the time left follows from it. Told at most ten times a second."""
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
        if self._cancelled.is_set():
            raise Cancelled

    def cancel(self) -> None:
        self._cancelled.set()


def encoding(report: Reporter, images: Sequence[object]) -> Callable[[int], None]:
    """Takes how many of the images are encoded, and tells of that as the first half of a job."""
    return lambda done: report(0.5 * done / len(images), phase="encoding", images=done)


Work = Callable[[Reporter], Mapping[str, Any] | None]
"""Runs in a thread. Returns the job's result, or None where it has stored that itself."""


@dataclass(eq=False)
class _Running:
    owner: str
    reporter: Reporter
    state: str = "queued"
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class JobRunner:
    """Unfinished jobs live here, finished ones in the store. Called on the event loop."""

    def __init__(self, store: Store, *, max_unfinished: int = 8) -> None:
        self._store = store
        self._max_unfinished = max_unfinished
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        self._running: dict[str, _Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._submitting = asyncio.Lock()
        self._stopping = False
        self._untold: OrderedDict[str, Job] = OrderedDict()

    def unfinished(self, owner: str) -> int:
        return sum(entry.owner == owner for entry in self._running.values())

    async def submit(self, owner: str, kind: str, work: Callable[[str], Work]) -> Job:
        """Queue `work(job_id)`. Raises QuotaExceeded."""
        loop = asyncio.get_running_loop()
        async with self._submitting:  # or many at once would all be counted as the first
            if self.unfinished(owner) >= self._max_unfinished:
                limit = self._max_unfinished
                raise QuotaExceeded(f"{limit} jobs are queued or running; wait for one or cancel one.")
            job = await asyncio.to_thread(self._store.add_job, owner, kind)
            entry = _Running(owner, Reporter(lambda: _tell(loop, entry)))
            self._running[job.id] = entry
        task = loop.create_task(self._run(job.id, entry, work(job.id)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return job

    def get(self, owner: str, job: str) -> Job | None:
        """A job of this owner as it stands now."""
        stored = self._store.job(owner, job)
        if stored is None or stored.finished is not None:
            return stored
        entry = self._running.get(job)
        if entry is None:
            return self._untold.get(job, stored)
        return replace(stored, state=entry.state, progress=entry.reporter.progress)

    def list(self, owner: str) -> list[Job]:
        jobs = [self.get(owner, job.id) for job in self._store.jobs(owner)]
        return [job for job in jobs if job is not None]

    async def watch(self, owner: str, job: str) -> AsyncGenerator[Job, None]:
        """The job now and after every change, its final state last; slow readers miss states only in between."""
        while (current := self.get(owner, job)) is not None:
            entry = self._running.get(job)
            changed = entry.changed if entry is not None else None
            yield current
            if current.finished is not None or changed is None:
                return
            await changed.wait()

    async def cancel(self, owner: str, job: str) -> Job | None:
        """Ask a job to end; a queued one ends at once, a running one within an iteration. Finished ones stay."""
        current = self.get(owner, job)
        entry = self._running.get(job)
        if current is None or entry is None:
            return current
        entry.reporter.cancel()
        if entry.state == "queued":
            await asyncio.to_thread(self._store.finish_job, job, "cancelled")
            _notify(entry)
        return self.get(owner, job)

    async def forget(self, owner: str, job: str) -> Job | None:
        """Delete a finished job and its result; its last state. Raises Conflict for one that has not finished."""
        current = self.get(owner, job)
        if current is not None and not await asyncio.to_thread(self._store.delete_job, owner, job):
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
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._pool, self._work, job, entry, work, loop)
        finally:
            del self._running[job]
            _notify(entry)

    def _work(self, job: str, entry: _Running, work: Work, loop: asyncio.AbstractEventLoop) -> None:
        """In the pool's thread: run, and store the outcome before anybody is told of it."""
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
        except Exception:
            if state == "succeeded":
                raise
            log.exception("the end of job %s cannot be stored", job)
            stored = self._store.job(entry.owner, job)
            if stored is not None:
                self._untold[job] = replace(stored, state=state, finished=time.time(), progress=progress, error=error)
            while len(self._untold) > _UNTOLD:
                self._untold.popitem(last=False)


def _notify(entry: _Running) -> None:
    """Wake all who wait now; who waits next waits for the next change."""
    entry.changed.set()
    entry.changed = asyncio.Event()


def _tell(loop: asyncio.AbstractEventLoop, entry: _Running) -> None:
    """From the job's thread."""
    loop.call_soon_threadsafe(_notify, entry)
