"""What the store keeps, as values: classifiers, jobs, sessions, and answers under idempotency keys."""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

ANONYMOUS = "anonymous"
"""Owner of everything that is made without an API key."""

JOB_STATES = ("queued", "running", "succeeded", "failed", "cancelled")

RESTARTED = {"code": "server_restarted", "message": "The server was restarted while the job ran; submit it again."}
"""The error of a job whose server ended before it did."""


@dataclass(frozen=True)
class Classifier:
    """A named classifier; `about` describes it, its tensors are in the file `blob`."""

    id: str
    owner: str
    name: str
    created: float
    about: Mapping[str, Any]
    blob: str
    size: int

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Self:
        return cls(**{**dict(row), "about": json.loads(row["about"])})


@dataclass(frozen=True)
class Job:
    """A piece of work as its owner sees it; `error` has `code` and `message`."""

    id: str
    owner: str
    kind: str
    state: str
    created: float
    finished: float | None = None
    progress: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] | None = None
    error: Mapping[str, str] | None = None

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Self:
        decoded = {name: json.loads(row[name]) for name in ("progress", "result", "error") if row[name] is not None}
        return cls(**{**dict(row), **decoded})


@dataclass(frozen=True)
class Answer:
    """What an idempotency key was answered with; `digest` tells a retry from another request under the same key."""

    key: str
    number: int
    digest: str
    answer: str


@dataclass(frozen=True)
class Session:
    """A stream at its last snapshot: `observed` images are in `state`."""

    id: str
    owner: str
    created: float
    about: Mapping[str, Any]
    blob: str
    size: int
    observed: int
    state: bytes

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Self:
        return cls(**{**dict(row), "about": json.loads(row["about"])})
