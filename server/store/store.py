"""What survives a restart: classifiers, sessions and jobs, each seen by its owner only."""

import json
import secrets
import sqlite3
import time
from collections.abc import Mapping
from typing import Any

from covervlm.server.store.database import Database
from covervlm.server.store.records import RESTARTED, Answer, Classifier, Job, Session


class NameTaken(Exception):
    """The owner already has a classifier of this name."""


class Store:
    """Every method is one transaction: it happens whole or not at all. Nothing here knows images or features."""

    def __init__(self, database: Database) -> None:
        """Takes over an open data folder; jobs that a killed process left unfinished are marked failed."""
        self._db = database
        with database.transaction() as db:
            db.execute(
                "UPDATE jobs SET state = 'failed', finished = ?, error = ? WHERE finished IS NULL",
                (time.time(), json.dumps(RESTARTED)),
            )

    def close(self) -> None:
        self._db.close()

    def read_blob(self, name: str) -> bytes:
        """The tensors of a classifier or a session."""
        return self._db.read_blob(name)

    def usage(self, owner: str) -> int:
        """Bytes of the owner's files and session states."""
        row = self._db.row(
            "SELECT (SELECT coalesce(sum(size), 0) FROM classifiers WHERE owner = ?1) +"
            " (SELECT coalesce(sum(size + length(state)), 0) FROM sessions WHERE owner = ?1)",
            owner,
        )
        return int(row[0]) if row else 0

    def counts(self) -> tuple[dict[str, int], int]:
        """All owners' jobs by state, and their sessions."""
        jobs = self._db.rows("SELECT state, count(*) FROM jobs GROUP BY state")
        row = self._db.row("SELECT count(*) FROM sessions")
        return {state: int(count) for state, count in jobs}, int(row[0]) if row else 0

    # Classifiers.

    def add_classifier(
        self,
        owner: str,
        name: str,
        about: Mapping[str, Any],
        data: bytes,
        *,
        job: str | None = None,
        progress: Mapping[str, Any] | None = None,
    ) -> Classifier:
        """Keep a classifier and, in the same transaction, finish the job that made it. Raises NameTaken."""
        classifier = Classifier(new_id("cls"), owner, name, time.time(), about, self._db.write_blob(data), len(data))
        try:
            with self._db.transaction() as db:
                db.execute(
                    "INSERT INTO classifiers VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (classifier.id, owner, name, classifier.created, json.dumps(about), classifier.blob, len(data)),
                )
                if job is not None:
                    result = {"classifier": name, "classifier_id": classifier.id}
                    _finish(db, job, "succeeded", progress=progress, result=result)
        except BaseException as error:
            self._db.remove_blob(classifier.blob)
            if isinstance(error, sqlite3.IntegrityError):
                raise NameTaken(name) from None
            raise
        return classifier

    def classifier(self, owner: str, name: str) -> Classifier | None:
        """By name or by id."""
        row = self._db.row("SELECT * FROM classifiers WHERE owner = ?1 AND (name = ?2 OR id = ?2)", owner, name)
        return None if row is None else Classifier.from_row(row)

    def classifiers(self, owner: str) -> list[Classifier]:
        rows = self._db.rows("SELECT * FROM classifiers WHERE owner = ? ORDER BY created", owner)
        return [Classifier.from_row(row) for row in rows]

    def delete_classifier(self, owner: str, name: str) -> bool:
        found = self.classifier(owner, name)
        if found is None:
            return False
        with self._db.transaction() as db:
            db.execute("DELETE FROM classifiers WHERE owner = ? AND id = ?", (owner, found.id))
        self._db.forget_blob(found.blob)
        return True

    # Jobs.

    def add_job(self, owner: str, kind: str, keep: int = 1000) -> Job:
        """A queued job; of the owner's finished ones only the newest `keep` are kept."""
        job = Job(new_id("job"), owner, kind, "queued", time.time())
        with self._db.transaction() as db:
            db.execute(
                "INSERT INTO jobs (id, owner, kind, state, created, progress) VALUES (?, ?, ?, 'queued', ?, '{}')",
                (job.id, owner, kind, job.created),
            )
            db.execute(
                "DELETE FROM jobs WHERE owner = ?1 AND finished IS NOT NULL AND id NOT IN"
                " (SELECT id FROM jobs WHERE owner = ?1 AND finished IS NOT NULL ORDER BY created DESC LIMIT ?2)",
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

    def job(self, owner: str, job: str) -> Job | None:
        row = self._db.row("SELECT * FROM jobs WHERE owner = ? AND id = ?", owner, job)
        return None if row is None else Job.from_row(row)

    def jobs(self, owner: str) -> list[Job]:
        return [
            Job.from_row(row) for row in self._db.rows("SELECT * FROM jobs WHERE owner = ? ORDER BY created", owner)
        ]

    def delete_job(self, owner: str, job: str) -> bool:
        """Forget a finished job and its result; False where there is none."""
        with self._db.transaction() as db:
            query = "DELETE FROM jobs WHERE owner = ? AND id = ? AND finished IS NOT NULL"
            found = db.execute(query, (owner, job)).rowcount > 0
        if found:
            self._db.truncate_log()
        return found

    # Sessions.

    def add_session(self, owner: str, about: Mapping[str, Any], data: bytes, state: bytes) -> Session:
        session = Session(new_id("zss"), owner, time.time(), about, self._db.write_blob(data), len(data), 0, state)
        try:
            with self._db.transaction() as db:
                db.execute(
                    "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, 0, ?)",
                    (session.id, owner, session.created, json.dumps(about), session.blob, len(data), state),
                )
        except BaseException:
            self._db.remove_blob(session.blob)
            raise
        return session

    def session(self, owner: str, session: str) -> Session | None:
        row = self._db.row("SELECT * FROM sessions WHERE owner = ? AND id = ?", owner, session)
        return None if row is None else Session.from_row(row)

    def sessions(self, owner: str) -> list[Session]:
        """Without their states, which are large."""
        columns = "id, owner, created, about, blob, size, observed, x'' AS state"
        rows = self._db.rows(f"SELECT {columns} FROM sessions WHERE owner = ? ORDER BY created", owner)
        return [Session.from_row(row) for row in rows]

    def answers(self, session: str) -> list[Answer]:
        """What the snapshot remembers of idempotency keys, oldest first."""
        rows = self._db.rows(
            "SELECT key, number, digest, answer FROM answers WHERE session = ? ORDER BY number", session
        )
        return [Answer(**row) for row in rows]

    def save_session(
        self, session: str, observed: int, state: bytes, answers: list[Answer], forget_before: int = 0
    ) -> None:
        """Replace the snapshot and add the answers given since the last one, together; drop answers older than that."""
        with self._db.transaction() as db:
            db.execute("UPDATE sessions SET observed = ?, state = ? WHERE id = ?", (observed, state, session))
            db.executemany(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)",
                [(session, a.key, a.number, a.digest, a.answer) for a in answers],
            )
            db.execute("DELETE FROM answers WHERE session = ? AND number < ?", (session, forget_before))

    def replace_session(self, session: str, observed: int, state: bytes) -> None:
        """Put a session into another state; answers that belong to the old one are forgotten."""
        with self._db.transaction() as db:
            db.execute("UPDATE sessions SET observed = ?, state = ? WHERE id = ?", (observed, state, session))
            db.execute("DELETE FROM answers WHERE session = ?", (session,))

    def delete_session(self, owner: str, session: str) -> bool:
        found = self.session(owner, session)
        if found is None:
            return False
        with self._db.transaction() as db:
            db.execute("DELETE FROM sessions WHERE owner = ? AND id = ?", (owner, session))
        self._db.forget_blob(found.blob)
        return True


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"


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
