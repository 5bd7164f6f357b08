"""The data folder: one SQLite database that a single process owns, and files beside it that its rows name."""

import contextlib
import errno
import os
import secrets
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from covervlm.server.resources import StorageFull

SCHEMA = """
CREATE TABLE classifiers (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, created REAL NOT NULL,
    about TEXT NOT NULL, blob TEXT NOT NULL, size INTEGER NOT NULL, UNIQUE (owner, name)
);
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, kind TEXT NOT NULL, state TEXT NOT NULL, created REAL NOT NULL,
    finished REAL, progress TEXT NOT NULL, result TEXT, error TEXT
);
CREATE INDEX jobs_by_owner ON jobs (owner, created);
CREATE TABLE sessions (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, created REAL NOT NULL,
    about TEXT NOT NULL, blob TEXT NOT NULL, size INTEGER NOT NULL, observed INTEGER NOT NULL, state BLOB NOT NULL
);
CREATE TABLE answers (
    session TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE, key TEXT NOT NULL, number INTEGER NOT NULL,
    digest TEXT NOT NULL, answer TEXT NOT NULL, PRIMARY KEY (session, key)
);
"""
VERSION = 1


class StoreError(Exception):
    """The data folder cannot be used; the message is for the person who starts the server."""


class Database:
    """May be used from any thread. Every commit is synced to disk before the call returns.

    Files are complete before a row names them, and a start removes files that no row names, so a process may be
    killed at any moment.
    """

    def __init__(self, folder: Path | None) -> None:
        """Open or make the data folder; None keeps everything in a temporary one, gone with the process.

        Raises StoreError for a folder that cannot be used, e.g. because another server has it open.
        """
        self._temporary = tempfile.TemporaryDirectory(prefix="covervlm-") if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary is not None else folder or Path()
        self._blobs = self.folder / "blobs"
        self._lock = threading.RLock()
        try:
            self._blobs.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = self._open(self.folder / "covervlm.sqlite3")
        except OSError as error:
            raise StoreError(f"the data folder {self.folder} cannot be used: {error.strerror or error}") from None
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise StoreError(
                    f"the data folder {self.folder} is in use by another server; give each server its own"
                ) from None
            raise StoreError(f"the data folder {self.folder} cannot be used: {error}") from None
        except sqlite3.DatabaseError as error:
            raise StoreError(f"the database in {self.folder} cannot be read: {error}") from None
        self._remove_unnamed()

    def close(self) -> None:
        with self._lock:
            self._db.close()
            if self._temporary is not None:
                self._temporary.cleanup()

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(path, timeout=1, isolation_level=None, check_same_thread=False)
        db.row_factory = sqlite3.Row
        # One process owns the file: sessions live in memory between snapshots. Locked for as long as it is open.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA secure_delete = ON")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("BEGIN IMMEDIATE")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            for statement in SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")
        if version > VERSION:
            db.close()
            raise StoreError(f"the database {path} was written by a newer version of the server")
        path.chmod(0o600)
        return db

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block or nothing. Raises StorageFull."""
        with self._lock, _unless_full():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def row(self, query: str, *values: Any) -> sqlite3.Row | None:
        with self._lock:
            return self._db.execute(query, values).fetchone()

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def _remove_unnamed(self) -> None:
        named = {row[0] for row in self.rows("SELECT blob FROM classifiers UNION SELECT blob FROM sessions")}
        for path in self._blobs.iterdir():
            if path.name not in named:
                path.unlink()

    def write_blob(self, data: bytes) -> str:
        """Store bytes in a file of their own and return its name; the caller's next call must name it in a row.

        Raises StorageFull.
        """
        name = f"{secrets.token_hex(16)}.safetensors"
        # A file that was cut short by a crash is named by no row.
        try:
            with _unless_full():
                self._write(name, data)
        except BaseException:
            self.remove_blob(name)
            raise
        return name

    def _write(self, name: str, data: bytes) -> None:
        descriptor = os.open(self._blobs / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(self._blobs, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def read_blob(self, name: str) -> bytes:
        return (self._blobs / name).read_bytes()

    def remove_blob(self, name: str) -> None:
        (self._blobs / name).unlink(missing_ok=True)

    def forget_blob(self, blob: str) -> None:
        """Remove the file of a row just deleted, and the row's pages from the write-ahead log."""
        self.remove_blob(blob)
        self.truncate_log()

    def truncate_log(self) -> None:
        """What was deleted leaves the write-ahead log too."""
        with self._lock:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@contextlib.contextmanager
def _unless_full() -> Iterator[None]:
    """Tells a full disk from other failures. Raises StorageFull."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
            raise
        raise StorageFull from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageFull from error
