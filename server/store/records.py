"""What the store keeps, as values: artifacts, jobs, and answers under idempotency keys."""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

JOB_STATES = ("queued", "running", "succeeded", "failed", "cancelled")

RESTARTED = {"code": "server_restarted", "message": "The server was restarted while the job ran; submit it again."}
"""The error of a job whose server ended before it did."""


@dataclass(frozen=True)
class Artifact:
    """A trained thing. kind: what it is, e.g. "classifier" or "stream". method: by which it was or is trained.

    version: counts those of one name from 1. card: all about it that people are told. blob: the file of its tensors,
    which never change, and its size in bytes. state: what does change, as of the last snapshot, in which `observed`
    images are. Lists hold no states.
    """

    id: str
    owner: str
    kind: str
    method: str | None
    name: str | None
    version: int
    created: float
    blob: str
    size: int
    observed: int
    card: Mapping[str, Any]
    state: bytes = b""

    @property
    def reference(self) -> str:
        """What names this very version, and its id where it has no name."""
        return self.id if self.name is None else f"{self.name}@{self.version}"

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Self:
        return cls(**{**dict(row), "card": json.loads(row["card"])})


@dataclass(frozen=True)
class JobRecord:
    """A piece of work as its owner sees it; `error` has `code` and `message`. Lists hold no results."""

    id: str
    owner: str
    kind: str
    method: str | None
    state: str
    created: float
    finished: float | None = None
    progress: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, str] | None = None
    result: Mapping[str, Any] | None = None

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Self:
        values = dict(row)
        decoded = {name: json.loads(values[name]) for name in ("progress", "error", "result") if values.get(name)}
        return cls(**{**values, **decoded})


@dataclass(frozen=True)
class KeyedAnswer:
    """What an idempotency key was answered with; `digest` tells a retry from another request under the same key."""

    key: str
    number: int
    digest: str
    answer: str
