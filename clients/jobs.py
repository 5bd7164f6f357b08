"""Long work on the server: its state, its progress and its result."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

from covervlm.clients.calls import Call
from covervlm.clients.clip_answers import Clustering
from covervlm.clients.errors import JobFailedError

R = TypeVar("R")

_RESULTS: Mapping[str, Callable[[Any], Any]] = {
    "clustering": Clustering.read,
    "classifier": lambda body: str(body["classifier"]),
}
"""How the result of each kind of job is read; a classifier's is its name."""


@dataclass(frozen=True)
class Job(Generic[R]):
    """A job as it stood when the server was asked.

    state: queued, running, succeeded, failed or cancelled. created, finished: Unix times. progress: share, phase,
    eta_seconds and what else the work tells. result: once it succeeded; None in lists. error: once it failed.
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
        """What the work is at, in a word or two."""
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
        if result is not None and body["kind"] in _RESULTS:
            result = _RESULTS[body["kind"]](result)
        return cls(
            body["id"],
            body["kind"],
            body["state"],
            body["created"],
            body["finished"],
            body["progress"],
            result,
            body["error"],
        )

    @classmethod
    def read_list(cls, body: Mapping[str, Any]) -> list[Self]:
        return [cls.read(entry) for entry in body["data"]]


def get(job: str | Job[R]) -> Call[Job[R]]:
    """The job as it stands now. Raises NotFoundError for none of this API key's."""
    return Call("GET", f"/v1/jobs/{name_of(job)}", Job[R].read)


def list_all() -> Call[list[Job[Any]]]:
    """All jobs of this API key, oldest first, without their results."""
    return Call("GET", "/v1/jobs", Job[Any].read_list)


def cancel(job: str | Job[R]) -> Call[Job[R]]:
    """Ask a job to end: a queued one ends at once, a running one soon, a finished one stays as it is."""
    return Call("DELETE", f"/v1/jobs/{name_of(job)}", Job[R].read)


def forget(job: str | Job[R]) -> Call[Job[R]]:
    """Delete a finished job with its result; the answer is what it was."""
    return Call("DELETE", f"/v1/jobs/{name_of(job)}?forget=true", Job[R].read, repeatable=False)


def name_of(job: str | Job[Any]) -> str:
    return job if isinstance(job, str) else job.id
