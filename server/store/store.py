"""What survives a restart: artifacts and jobs, each seen by its owner only."""

import asyncio
import contextvars
import functools
import json
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from covervlm.server.core.errors import Damaged
from covervlm.server.store.database import Database
from covervlm.server.store.records import RESTARTED, Artifact, JobRecord, KeyedAnswer

P = ParamSpec("P")
Result = TypeVar("Result")

log = logging.getLogger(__name__)

_LISTED_ARTIFACT = "id, owner, kind, method, name, version, created, blob, size, observed, card"
_NAMED = "owner = ?1 AND kind = ?2 AND (name = ?3 OR id = ?3 OR name || '@' || version = ?3)"
_FIND = f"WHERE {_NAMED} ORDER BY name IS NULL OR name != ?3, version DESC LIMIT 1"
_LISTED_JOB = "id, owner, kind, method, state, created, finished, progress, error"


class Store:
    """Every method is one transaction: it happens whole or not at all. Nothing here knows images or features.

    Calls wait for the disk and for each other: on an event loop, they are made through `soon`.
    """

    def __init__(self, database: Database, *, threads: int = 2) -> None:
        """Takes over an open data folder; jobs that a killed process left unfinished are marked failed."""
        self._db = database
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="store")
        with database.transaction() as db:
            db.execute(
                "UPDATE jobs SET state = 'failed', finished = ?, error = ? WHERE finished IS NULL",
                (time.time(), json.dumps(RESTARTED)),
            )

    def close(self) -> None:
        self._pool.shutdown(wait=True)
        self._db.close()

    async def soon(self, call: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Run `call`, a method of the store or a function that uses it, in one of the store's threads."""
        context = contextvars.copy_context()
        work = functools.partial(context.run, call, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def counts(self) -> tuple[dict[str, int], int]:
        """All owners' jobs by state, and their streams."""
        jobs = self._db.rows("SELECT state, count(*) FROM jobs GROUP BY state")
        row = self._db.row("SELECT count(*) FROM artifacts WHERE kind = 'stream'")
        return {state: int(count) for state, count in jobs}, int(row[0]) if row else 0

    # Artifacts.

    def add(
        self,
        owner: str,
        kind: str,
        card: Mapping[str, Any],
        data: bytes,
        *,
        name: str | None = None,
        method: str | None = None,
        state: bytes = b"",
        job: str | None = None,
        progress: Mapping[str, Any] | None = None,
        admit: Callable[[int, int], None] = lambda count, size: None,
    ) -> Artifact:
        """Keep an artifact, as the next version of its name, and in the same transaction finish the job that made it.

        `admit` is called in the transaction with what `usage` returns, and raises where that is too much already.
        """
        blob, made = self._db.write_blob(data), new_id(kind[:3])
        try:
            with self._db.transaction() as db:
                admit(*self.usage(owner, kind))
                version = 1 if name is None else _next_version(db, owner, kind, name)
                artifact = Artifact(
                    made, owner, kind, method, name, version, time.time(), blob, len(data), 0, card, state
                )
                values = (made, owner, kind, method, name, version, artifact.created, blob, len(data))
                db.execute(
                    "INSERT INTO artifacts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?)",
                    (*values, json.dumps(card), state),
                )
                if job is not None:
                    result = {kind: artifact.reference, f"{kind}_id": made}
                    _finish(db, job, "succeeded", progress=progress, result=result)
        except BaseException:
            self._db.remove_blob(blob)
            raise
        return artifact

    def find(self, owner: str, kind: str, name: str) -> Artifact | None:
        """By name, which means its newest version, by `name@version` or by id."""
        row = self._db.row(f"SELECT * FROM artifacts {_FIND}", owner, kind, name)
        return None if row is None else Artifact.from_row(row)

    def artifacts(self, owner: str, kind: str) -> list[Artifact]:
        """Oldest first."""
        query = f"SELECT {_LISTED_ARTIFACT} FROM artifacts WHERE owner = ? AND kind = ? ORDER BY created, rowid"
        return [Artifact.from_row(row) for row in self._db.rows(query, owner, kind)]

    def usage(self, owner: str, kind: str) -> tuple[int, int]:
        """How many artifacts of one kind the owner has, and the bytes that those of all kinds take."""
        query = "SELECT count(*) FILTER (WHERE kind = ?), total(size + length(state)) FROM artifacts WHERE owner = ?"
        row = self._db.row(query, kind, owner)
        return (int(row[0]), int(row[1])) if row else (0, 0)

    def read(self, artifact: Artifact) -> bytes:
        """The artifact's tensors. Raises Damaged."""
        try:
            return self._db.read_blob(artifact.blob)
        except OSError as error:
            log.error("the file %s of %s cannot be read: %s", artifact.blob, artifact.id, error)
            raise Damaged(artifact.kind, artifact.name or artifact.id) from error

    def delete(self, owner: str, kind: str, name: str) -> bool:
        """Delete one artifact, by `name@version` or id, or all of a name, with what belongs to them; False for none.

        A version's number is not given again as long as the name has others.
        """
        return self._db.freeing(functools.partial(self._delete, owner, kind, name))

    def _delete(self, owner: str, kind: str, name: str) -> bool:
        with self._db.transaction() as db:
            query = f"SELECT id, blob, name FROM artifacts WHERE {_NAMED}"
            found = db.execute(query, (owner, kind, name)).fetchall()
            found = [row for row in found if row["name"] == name] or found  # an id may be another one's name
            db.executemany("INSERT INTO deleted_blobs VALUES (?)", [(row["blob"],) for row in found])
            db.executemany("DELETE FROM artifacts WHERE id = ?", [(row["id"],) for row in found])
            db.execute(
                "DELETE FROM versions WHERE owner = ?1 AND kind = ?2 AND name NOT IN"
                " (SELECT name FROM artifacts WHERE owner = ?1 AND kind = ?2 AND name IS NOT NULL)",
                (owner, kind),
            )
        for row in found:
            self._db.forget_blob(row["blob"])
        return bool(found)

    # States that change, with the answers under idempotency keys.

    def answers(self, artifact: str) -> list[KeyedAnswer]:
        """What the snapshot remembers of idempotency keys, oldest first."""
        query = "SELECT key, number, digest, answer FROM answers WHERE artifact = ? ORDER BY number"
        return [KeyedAnswer(**row) for row in self._db.rows(query, artifact)]

    def save_state(
        self, artifact: str, observed: int, state: bytes, answers: Sequence[KeyedAnswer], forget_before: int = 0
    ) -> None:
        """Replace the snapshot and add the answers given since the last one, together; drop answers older than that."""
        with self._db.transaction() as db:
            db.execute("UPDATE artifacts SET observed = ?, state = ? WHERE id = ?", (observed, state, artifact))
            db.executemany(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)",
                [(artifact, a.key, a.number, a.digest, a.answer) for a in answers],
            )
            db.execute("DELETE FROM answers WHERE artifact = ? AND number < ?", (artifact, forget_before))

    def replace_state(self, artifact: str, observed: int, state: bytes) -> None:
        """Switch to another state, and forget the answers that belong to the old one."""
        with self._db.transaction() as db:
            db.execute("UPDATE artifacts SET observed = ?, state = ? WHERE id = ?", (observed, state, artifact))
            db.execute("DELETE FROM answers WHERE artifact = ?", (artifact,))

    # Jobs.

    def add_job(self, owner: str, kind: str, method: str | None = None, keep: int = 1000) -> JobRecord:
        """A queued job; of the owner's finished ones only the newest `keep` are kept."""
        job = JobRecord(new_id("job"), owner, kind, method, "queued", time.time())
        with self._db.transaction() as db:
            db.execute(
                "INSERT INTO jobs (id, owner, kind, method, state, created, progress)"
                " VALUES (?, ?, ?, ?, 'queued', ?, '{}')",
                (job.id, owner, kind, method, job.created),
            )
            db.execute(
                "DELETE FROM jobs WHERE owner = ?1 AND finished IS NOT NULL AND id NOT IN"
                " (SELECT id FROM jobs WHERE owner = ?1 AND finished IS NOT NULL ORDER BY rowid DESC LIMIT ?2)",
                (owner, keep),
            )
        return job

    def start_job(self, job: str) -> None:
        with self._db.transaction() as db:
            db.execute("UPDATE jobs SET state = 'running' WHERE id = ? AND state = 'queued'", (job,))

    def finish_job(
        self,
        job: str,
        state: str,
        *,
        progress: Mapping[str, Any] | None = None,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, str] | None = None,
    ) -> None:
        """Set a job's final state; one that is finished already stays as it is."""
        with self._db.transaction() as db:
            _finish(db, job, state, progress=progress, result=result, error=error)

    def job(self, owner: str, job: str) -> JobRecord | None:
        row = self._db.row("SELECT * FROM jobs WHERE owner = ? AND id = ?", owner, job)
        return None if row is None else JobRecord.from_row(row)

    def jobs(
        self, owner: str, *, limit: int = -1, after: str | None = None, newest_first: bool = False
    ) -> list[JobRecord]:
        """At most `limit` jobs (-1: all) without their results, from the one behind `after`; empty where that one is
        gone."""
        order, sign = ("DESC", "<") if newest_first else ("ASC", ">")
        begin = f"AND (created, rowid) {sign} (SELECT created, rowid FROM jobs WHERE owner = ?1 AND id = ?3)"
        where, values = ("", (owner, limit)) if after is None else (begin, (owner, limit, after))
        query = f"SELECT {_LISTED_JOB} FROM jobs WHERE owner = ?1 {where} ORDER BY created {order}, rowid {order}"
        return [JobRecord.from_row(row) for row in self._db.rows(f"{query} LIMIT ?2", *values)]

    def delete_job(self, owner: str, job: str) -> bool:
        """Forget a finished job and its result; False where there is none."""
        return self._db.freeing(functools.partial(self._delete_job, owner, job))

    def _delete_job(self, owner: str, job: str) -> bool:
        with self._db.transaction() as db:
            query = "DELETE FROM jobs WHERE owner = ? AND id = ? AND finished IS NOT NULL"
            found = db.execute(query, (owner, job)).rowcount > 0
        if found:
            self._db.truncate_log()
        return found


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"


def _next_version(db: sqlite3.Connection, owner: str, kind: str, name: str) -> int:
    row = db.execute(
        "INSERT INTO versions VALUES (?, ?, ?, 1) ON CONFLICT DO UPDATE SET newest = newest + 1 RETURNING newest",
        (owner, kind, name),
    ).fetchone()
    return int(row[0])


def _finish(
    db: sqlite3.Connection,
    job: str,
    state: str,
    *,
    progress: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
    error: Mapping[str, str] | None = None,
) -> None:
    db.execute(
        "UPDATE jobs SET state = ?, finished = ?, progress = coalesce(?, progress), result = ?, error = ?"
        " WHERE id = ? AND finished IS NULL",
        (state, time.time(), *(None if v is None else json.dumps(v) for v in (progress, result, error)), job),
    )
