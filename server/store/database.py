"""The data folder: one SQLite database that a single process owns, and files beside it that its rows name."""

import contextlib
import errno
import logging
import os
import secrets
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from covervlm.server.core.errors import StorageFull, StorageUnavailable
from covervlm.server.store.schema import NewerSchema, migrate

log = logging.getLogger(__name__)

Result = TypeVar("Result")

NAME = "covervlm.sqlite3"
_OURS = ("blobs", "quarantine", "lost+found", "reserve", "traffic.sqlite3", "traffic.sqlite3-wal")
_RESERVE = 8 * 1024**2
"""Bytes of the disk that are set aside at most, because deleting takes room too."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


class StoreError(Exception):
    """The data folder cannot be used; the message is for the person who starts the server."""


class Database:
    """May be used from any thread. Every commit is synced to disk before the call returns.

    Files are complete before a row names them, and what is deleted is noted in the same transaction, so a process may
    be killed at any moment. A start removes the files noted as deleted. Files that the database does not know are moved
    to `quarantine`: the database may be older than they are, or lost.
    """

    def __init__(self, folder: Path | None) -> None:
        """Open or make the data folder; None keeps everything in a temporary one, gone with the process.

        Raises StoreError for a folder that cannot be used, e.g. because another server has it open.
        """
        self._temporary = tempfile.TemporaryDirectory(prefix="covervlm-") if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary is not None else folder or Path()
        self._blobs = self.folder / "blobs"
        self._reserve = self.folder / "reserve"
        self._lock = threading.RLock()
        try:
            self._make_private()
            self._db = self._open(self.folder / NAME)
            self._tidy()
            self.set_aside()
        except OSError as error:
            raise StoreError(f"the data folder {self.folder} cannot be used: {error.strerror or error}") from None
        except NewerSchema:
            raise StoreError(
                f"the database in {self.folder} was written by a newer version; upgrade this server"
            ) from None
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise StoreError(
                    f"the data folder {self.folder} is in use by another server; give each server its own"
                ) from None
            raise StoreError(f"the data folder {self.folder} cannot be used: {error}") from None
        except sqlite3.DatabaseError as error:
            raise StoreError(f"the database in {self.folder} cannot be read: {error}") from None

    def close(self) -> None:
        with self._lock:
            self._db.close()
            if self._temporary is not None:
                self._temporary.cleanup()

    def _make_private(self) -> None:
        """The folder and all that is in it for the server's user alone; a folder that others use keeps its mode."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if all(entry.name.startswith(NAME) or entry.name in _OURS for entry in self.folder.iterdir()):
            _restrict(self.folder, 0o700)
        self._blobs.mkdir(exist_ok=True)
        _restrict(self._blobs, 0o700)
        database = self.folder / NAME
        os.close(os.open(database, os.O_RDWR | os.O_CREAT, 0o600))
        log_file = self.folder / f"{NAME}-wal"
        if database.stat().st_size == 0 and log_file.exists():
            self._quarantine([log_file])  # SQLite would delete it
        # What SQLite makes beside the database gets the database's mode.
        for path in self.folder.glob(f"{NAME}*"):
            _restrict(path, 0o600)

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(path, timeout=1, isolation_level=None, check_same_thread=False)
        try:
            db.row_factory = sqlite3.Row
            # One process owns the file: sessions live in memory between snapshots. Locked for as long as it is open.
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA secure_delete = ON")
            db.execute("PRAGMA foreign_keys = ON")
            migrate(db)
        except BaseException:
            db.close()
            raise
        return db

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block or nothing. Raises StorageFull or StorageUnavailable."""
        with self._lock, _storage_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def freeing(self, delete: Callable[[], Result]) -> Result:
        """What `delete` returns; on a full disk it is tried again in the room that was set aside."""
        try:
            return delete()
        except StorageFull:
            self._reserve.unlink(missing_ok=True)
            return delete()
        finally:
            self.set_aside()

    def set_aside(self) -> None:
        """Reserve room on the disk for deletions, at most half of what there is, unless it is reserved already."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self._reserve, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                disk, reserved = os.fstatvfs(descriptor), os.fstat(descriptor).st_size
                wanted = min(_RESERVE, (reserved + disk.f_bavail * disk.f_frsize) // 2)
                if wanted > reserved:
                    os.posix_fallocate(descriptor, 0, wanted)
            finally:
                os.close(descriptor)

    def row(self, query: str, *values: Any) -> sqlite3.Row | None:
        with self._lock, _storage_errors():
            return self._db.execute(query, values).fetchone()

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock, _storage_errors():
            return self._db.execute(query, values).fetchall()

    def _tidy(self) -> None:
        """Remove files whose deletion was cut short, and quarantine those that the database does not know."""
        named = {row[0] for row in self.rows("SELECT blob FROM artifacts")}
        unnamed = {path.name: path for path in self._blobs.iterdir() if path.name not in named}
        deleted = self.rows("SELECT blob FROM deleted_blobs")
        for row in deleted:
            unnamed.pop(row[0], None)
            self.remove_blob(row[0])
        if deleted:
            with self.transaction() as db:
                db.execute("DELETE FROM deleted_blobs")
        self._quarantine(unnamed.values())
        missing = sum(not (self._blobs / name).is_file() for name in named)
        if missing:
            log.error(
                "%d files that the database in %s names are missing from %s; restore them from a backup",
                missing,
                self.folder,
                self._blobs,
            )

    def _quarantine(self, files: Iterable[Path]) -> None:
        files = list(files)
        if files:
            place = self.folder / "quarantine" / time.strftime("%Y-%m-%dT%H-%M-%S")
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            for path in files:
                path.rename(place / path.name)
            log.warning("%d files that the database does not name were moved to %s", len(files), place)

    def write_blob(self, data: bytes) -> str:
        """Store bytes in a file of their own and return its name; the caller's next call must name it in a row.

        Raises StorageFull or StorageUnavailable.
        """
        name = f"{secrets.token_hex(16)}.safetensors"
        # A file that was cut short by a crash is named by no row.
        try:
            with _storage_errors():
                self._write(name, data)
        except BaseException:
            with contextlib.suppress(OSError):
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
        """Remove a file noted in `deleted_blobs`, and from the write-ahead log what was deleted with it."""
        try:
            self.remove_blob(blob)
        except OSError as error:
            log.error("the deleted file %s stays until the next start: %s", blob, error)
        self.truncate_log()

    def truncate_log(self) -> None:
        """Remove what was deleted from the write-ahead log too; where that fails, the next call does it."""
        try:
            with self._lock:
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.OperationalError as error:
            log.error("the write-ahead log of %s cannot be emptied; deleted data stays in it: %s", self.folder, error)


def _restrict(path: Path, mode: int) -> None:
    """Set the mode if the server may: on a volume, files may belong to somebody else."""
    with contextlib.suppress(PermissionError):
        path.chmod(mode)


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    """Turns a full disk into StorageFull, and any other failure of the disk into StorageUnavailable.

    A folder may have become read-only, be gone, or belong to somebody else since the start.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise StorageFull from error
        log.error("the database cannot be used: %s", error)
        raise StorageUnavailable from error
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull from error
        log.error("the data folder cannot be used: %s", error)
        raise StorageUnavailable from error
