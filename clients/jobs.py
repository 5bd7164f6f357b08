"""Long work on the server: its state and its result, asked for or waited for."""

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Generic, Self, TypeAlias, TypeVar

from covervlm.clients.calls import Call, Connection, finished, iterated
from covervlm.clients.errors import APIConnectionError, APITimeoutError, JobFailedError
from covervlm.clients.methods import Asyncio, Blocking, method
from covervlm.clients.records import Record

R = TypeVar("R")

QUIET_SECONDS = 60.0
"""After so long without an event, the client connects again: a connection can die without any sign of it."""

RESULTS: dict[str, Callable[[Any], Any]] = {}
"""How the result of each kind of job is read; modules that start jobs add an entry for theirs."""

Progress: TypeAlias = Callable[[float, str], None]
"""Takes the share of the work that is done, from 0 to 1, and what is being done."""


@dataclass(frozen=True)
class Job(Record, Generic[R]):
    """A job as it stood when the server was asked.

    state: queued, running, succeeded, failed or cancelled. created, finished: Unix times. progress: share, phase,
    eta_seconds, and more where the work reports it. result: once it succeeded; None in lists. error: once it failed.
    """

    id: str
    kind: str
    state: str
    created: int
    finished: int | None
    progress: Mapping[str, Any] = field(repr=False)
    result: R | None = field(repr=False)
    error: Mapping[str, str] | None

    @property
    def share(self) -> float:
        """How much of the work is done, from 0 to 1."""
        return float(self.progress.get("share") or 0.0)

    @property
    def phase(self) -> str:
        """The current step of the work, in a word or two."""
        return str(self.progress.get("phase") or self.state)

    def outcome(self) -> R:
        """The result. Raises JobFailedError where there is none."""
        if self.state == "succeeded" and self.result is not None:
            return self.result
        error = self.error or {}
        message = error.get("message", f"The job is {self.state}.")
        raise JobFailedError(message, job=self.id, state=self.state, code=error.get("code"))

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        result = body["result"]
        if result is not None and body["kind"] in RESULTS:
            result = RESULTS[body["kind"]](result)
        return super().read({**body, "result": result})


def get(job: str | Job[R]) -> Call[Job[R]]:
    """The job as it stands now. Raises NotFoundError where this API key has no such job."""
    return Call("GET", f"/v1/jobs/{_id_of(job)}", Job[R].read)


def list_all() -> Call[list[Job[Any]]]:
    """All jobs of this API key, oldest first, without their results."""
    return Call("GET", "/v1/jobs?limit=1000", Job[Any].read_list)  # more finished ones are not kept


def cancel(job: str | Job[R]) -> Call[Job[R]]:
    """Ask a job to end: a queued one ends at once, a running one soon, a finished one stays as it is."""
    return Call("DELETE", f"/v1/jobs/{_id_of(job)}", Job[R].read)


def forget(job: str | Job[R]) -> Call[Job[R]]:
    """Delete a finished job with its result; returns the job as it was."""
    return Call("DELETE", f"/v1/jobs/{_id_of(job)}?forget=true", Job[R].read, repeatable=False)


def points(job: str | Job[Any]) -> Call[bytes]:
    """A finished clustering as the bytes of a Parquet file: each image's index, `label`, `x` and `y`."""
    return Call("GET", f"/v1/jobs/{_id_of(job)}/points", bytes, binary=True)


def _id_of(job: str | Job[Any]) -> str:
    return job if isinstance(job, str) else job.id


async def _watch(connection: Connection, job: str | Job[R], timeout: float | None) -> AsyncGenerator[Job[R], None]:
    end = None if timeout is None else monotonic() + timeout

    def seconds() -> float:
        """How long to wait for news. Raises APITimeoutError once the time for all of it is up."""
        left = QUIET_SECONDS if end is None else end - monotonic()
        if left <= 0:
            raise APITimeoutError(f"The job {_id_of(job)} has not finished within the time given to it; it goes on.")
        return min(left, QUIET_SECONDS)

    failures, done = 0, False
    while not done:
        call = Call("GET", f"/v1/jobs/{_id_of(job)}/events", Job[R].read, timeout=seconds())
        try:
            response = await connection.open(call)
            async with aclosing(connection.events(response, call.read)) as states:
                async for state in states:
                    failures, done = 0, state.finished is not None
                    yield state
                    if not done:
                        seconds()
            if not done:
                raise APIConnectionError("The stream broke off before the job had finished.")
        except APITimeoutError:
            seconds()
            await connection.http.sleep(0.0)
        except APIConnectionError as error:
            if done:
                return
            delay = connection.retries.delay(failures, error)
            if delay is None:
                raise
            failures += 1
            await connection.http.sleep(delay)


async def _wait(connection: Connection, job: str | Job[R], progress: bool, timeout: float | None) -> R:
    with progress_bar(shown=progress) as move:
        async with aclosing(_watch(connection, job, timeout)) as states:
            async for state in states:
                move(state.share, state.phase)
    return state.outcome()


class _Methods:
    get = method(get)
    list = method(list_all)
    cancel = method(cancel)
    forget = method(forget)
    points = method(points)


class Jobs(_Methods, Blocking):
    """client.jobs: what runs on the server for longer than a request should."""

    def watch(self, job: str | Job[R], *, timeout: float | None = None) -> Iterator[Job[R]]:
        """The job now and at every change, its final state last; reconnects where the connection is lost.

        timeout: seconds for all of it. Raises APITimeoutError once they are over; the job goes on.
        """
        return iterated(_watch(self._connection, job, timeout))

    def wait(self, job: str | Job[R], *, progress: bool = False, timeout: float | None = None) -> R:
        """The job's result once it is there. Raises JobFailedError where the job fails or is cancelled.

        progress: whether to show a bar on stderr, if that is a terminal and tqdm is installed.
        timeout: seconds for all of it. Raises APITimeoutError once they are over; the job goes on.
        """
        return finished(_wait(self._connection, job, progress, timeout))


class AsyncJobs(_Methods, Asyncio):
    """The same for asyncio; `async for state in client.jobs.watch(job)`."""

    def watch(self, job: str | Job[R], *, timeout: float | None = None) -> AsyncGenerator[Job[R], None]:
        """The job now and at every change, its final state last; see Jobs.watch."""
        return _watch(self._connection, job, timeout)

    async def wait(self, job: str | Job[R], *, progress: bool = False, timeout: float | None = None) -> R:
        """The job's result once it is there; see Jobs.wait."""
        return await _wait(self._connection, job, progress, timeout)


@contextmanager
def progress_bar(*, shown: bool = True) -> Iterator[Progress]:
    """A bar on stderr if that is a terminal and tqdm is installed; gives what moves it, and removes it in the end."""
    try:
        from tqdm import tqdm
    except ImportError:
        shown = False
    if not shown:
        yield lambda share, what: None
        return
    form = "{desc} {percentage:3.0f}% |{bar}| {elapsed}<{remaining}"
    # tqdm takes None for "unless stderr is no terminal".
    with tqdm(total=1.0, disable=None, leave=False, bar_format=form, dynamic_ncols=True) as bar:

        def move(share: float, what: str) -> None:
            bar.set_description_str(what, refresh=False)
            bar.update(share - bar.n)
            bar.refresh()

        yield move
