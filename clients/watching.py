"""client.jobs: long work asked about, watched over as many connections as that takes, and waited for."""

import json
from asyncio import sleep as async_sleep
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, closing
from time import monotonic, sleep
from typing import Any, Generic, TypeVar

from covervlm.clients import jobs
from covervlm.clients.calls import Call
from covervlm.clients.errors import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    ResponseFormatError,
    connection_errors,
    stream_error,
)
from covervlm.clients.jobs import Job, name_of
from covervlm.clients.methods import AsyncPart, Part, asynchronous, blocking
from covervlm.clients.progress import progress_bar
from covervlm.clients.retries import RetryPolicy

R = TypeVar("R")

QUIET_SECONDS = 60.0
"""After so long without news, a job is asked about anew: the connection may be dead without anybody having noticed."""


class Watch(Generic[R]):
    """Follows one job over as many connections as that takes; it does not make them itself.

    timeout: seconds for all of it. The delays after lost connections are the policy's.
    """

    def __init__(self, job: str | Job[R], timeout: float | None, policy: RetryPolicy) -> None:
        self._job = name_of(job)
        self._end = None if timeout is None else monotonic() + timeout
        self._policy = policy
        self._failures = 0
        self.finished = False

    def call(self) -> Call[Any]:
        """The request for the job's events from now on. Raises APITimeoutError once the time is up."""
        left = QUIET_SECONDS if self._end is None else self._end - monotonic()
        if left <= 0:
            raise APITimeoutError(f"The job {self._job} has not finished within the time given to it; it goes on.")
        return Call("GET", f"/v1/jobs/{self._job}/events", lambda body: body, timeout=min(left, QUIET_SECONDS))

    def take(self, line: str) -> Job[R] | None:
        """The state that a line of the event stream tells, if it tells one."""
        name, _, data = line.partition(":")
        if name != "data" or data.strip() == "[DONE]":
            return None
        try:
            event = json.loads(data)
            if "error" in event and "id" not in event:
                raise stream_error(event["error"], None)
            job = Job[R].read(event)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResponseFormatError("The stream is not a covervlm server's.") from error
        self._failures = 0
        self.finished = job.finished is not None
        if not self.finished:
            self.call()
        return job

    def ended(self) -> None:
        """What the end of a stream means: raises APIConnectionError where the job has not finished."""
        if not self.finished:
            raise APIConnectionError("The stream broke off before the job had finished.")

    def pause(self, error: APIError) -> float:
        """Seconds until the next connection after one that was lost. Raises the error where it is final."""
        if isinstance(error, APITimeoutError):
            self.call()
            return 0.0
        delay = self._policy.delay(self._failures, error)
        if delay is None:
            raise error
        self._failures += 1
        return delay


class Jobs(Part):
    """client.jobs: what runs on the server for longer than a request should."""

    get = blocking(jobs.get)
    list = blocking(jobs.list_all)
    cancel = blocking(jobs.cancel)
    forget = blocking(jobs.forget)

    def watch(self, job: str | Job[R], *, timeout: float | None = None) -> Iterator[Job[R]]:
        """The job now and at every change, its final state last; lost connections are made again.

        timeout: seconds for all of it. Raises APITimeoutError where that is over; the job goes on.
        """
        watch = Watch(job, timeout, self.client.retries)
        while not watch.finished:
            try:
                with closing(self.open(watch.call())) as response, connection_errors():
                    for line in response.iter_lines():
                        if (state := watch.take(line)) is not None:
                            yield state
                watch.ended()
            except APIConnectionError as error:
                sleep(watch.pause(error))

    def wait(self, job: str | Job[R], *, progress: bool = False, timeout: float | None = None) -> R:
        """The job's result once it is there. Raises JobFailedError where the job fails or is cancelled.

        progress: whether to show a bar on stderr, if that is a terminal and tqdm is installed.
        """
        with progress_bar(shown=progress) as move:
            for state in self.watch(job, timeout=timeout):
                move(state.share, state.phase)
        return state.outcome()


class AsyncJobs(AsyncPart):
    """The same for asyncio; `async for state in client.jobs.watch(job)`."""

    get = asynchronous(jobs.get)
    list = asynchronous(jobs.list_all)
    cancel = asynchronous(jobs.cancel)
    forget = asynchronous(jobs.forget)

    async def watch(self, job: str | Job[R], *, timeout: float | None = None) -> AsyncGenerator[Job[R], None]:
        """The job now and at every change, its final state last; lost connections are made again."""
        watch = Watch(job, timeout, self.client.retries)
        while not watch.finished:
            try:
                response = await self.open(watch.call())
                try:
                    with connection_errors():
                        async for line in response.aiter_lines():
                            if (state := watch.take(line)) is not None:
                                yield state
                finally:
                    await response.aclose()
                watch.ended()
            except APIConnectionError as error:
                await async_sleep(watch.pause(error))

    async def wait(self, job: str | Job[R], *, progress: bool = False, timeout: float | None = None) -> R:
        """The job's result once it is there. Raises JobFailedError where the job fails or is cancelled."""
        with progress_bar(shown=progress) as move:
            async with aclosing(self.watch(job, timeout=timeout)) as states:
                async for state in states:
                    move(state.share, state.phase)
        return state.outcome()
