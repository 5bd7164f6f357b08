"""Counted minutes in a small SQLite file of their own: what came in the last weeks, across restarts."""

import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from covervlm.server.forecast.counter import Minute

NAME = "traffic.sqlite3"
HOURS = 5 * 168
"""Kept: three weeks show a weekly season, and two more tell how well it was foreseen. 640 KB of minutes."""
_MOST = 10**9
"""Requests of a minute; a file that says more has been damaged."""
_WATCHED = 30
"""Minutes of an hour that must have been watched, else it is a gap."""


@dataclass(frozen=True)
class Hours:
    """Complete hours in a row, the first of them with requests known.

    first: its number since the Unix epoch. requests: (T,) per hour, NaN in gaps. crowded: (T,) the share of its minutes
    in which requests had to wait, NaN where no minute tells.
    """

    first: int
    requests: NDArray[np.float64]
    crowded: NDArray[np.float64]


class History:
    """Waits for the disk; called from one thread at a time. Methods raise sqlite3.Error where the disk fails."""

    def __init__(self, folder: Path | None) -> None:
        """None keeps everything in memory. Raises OSError or sqlite3.Error, also where another server has the file."""
        place: str | Path = ":memory:"
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            place = folder / NAME
            os.close(os.open(place, os.O_RDWR | os.O_CREAT, 0o600))
        self._db = sqlite3.connect(place, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            # A crash of the machine may cost the last minutes, but never the file.
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS minutes"
                " (minute INTEGER PRIMARY KEY, requests INTEGER NOT NULL, crowded INTEGER)"
            )
            if (found := self._db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(found)
            odd = "typeof(minute) <> 'integer' OR typeof(requests) <> 'integer' OR requests NOT BETWEEN 0 AND ?"
            self._db.execute(f"DELETE FROM minutes WHERE {odd} OR crowded NOT IN (0, 1)", (_MOST,))
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    def write(self, minutes: Mapping[int, Minute], *, now: int) -> None:
        """Add to what is known of these minutes, all or none, and forget what is too old for minute `now`.

        So is what lies in the future: the clock was wrong.
        """
        rows = [(number, minute.requests, minute.crowded) for number, minute in minutes.items()]
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(
                "INSERT INTO minutes VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET"
                " requests = requests + excluded.requests,"
                " crowded = max(ifnull(crowded, excluded.crowded), ifnull(excluded.crowded, crowded))",
                rows,
            )
            oldest = (now // 60 - HOURS) * 60
            self._db.execute("DELETE FROM minutes WHERE minute < ? OR minute > ?", (oldest, now))
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def hours(self, until: int) -> Hours:
        """The last HOURS at most before hour `until`, from the first that is known on."""
        found = self._db.execute(
            "SELECT minute / 60, sum(requests), count(*), avg(crowded) FROM minutes WHERE minute >= ? AND minute < ?"
            " GROUP BY 1 HAVING count(*) >= ? ORDER BY 1",
            ((until - HOURS) * 60, until * 60, _WATCHED),
        ).fetchall()
        first = found[0][0] if found else until
        requests, crowded = np.full((2, until - first), np.nan)
        for hour, count, watched, share in found:
            requests[hour - first] = count * 60 / watched
            crowded[hour - first] = np.nan if share is None else share
        return Hours(first, requests, crowded)
