"""Counts requests while the server runs, writes them down every minute, and looks ahead every hour."""

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from covervlm.server.forecast.counter import MINUTE, Counter
from covervlm.server.forecast.history import NAME, History
from covervlm.server.forecast.outlook import Outlook, look_ahead

Result = TypeVar("Result")

log = logging.getLogger(__name__)

HOUR = 3600
LEAD = 600
"""Seconds before a foreseen hour begins in which it counts already: a queue that it finds stays all through it."""


class Forecaster:
    """Used on the event loop; the disk and the arithmetic are waited for in threads.

    `count` is told when a request came. `outlook` is the latest one; it is empty until the first has been made.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        crowded: Callable[[], bool | None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """folder: where history is kept, None for in memory. crowded: asked once a minute, see `Minute`."""
        self._folder = folder
        self._crowded = crowded
        self._clock = clock
        self._counter = Counter()
        self.count = self._counter.add
        self._history: History | None = None
        self._failing = False
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="forecast")
        self._looking = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.outlook = Outlook(made=0)

    def excess(self) -> float:
        """The load of this hour, or of the next if that begins soon, in multiples of what is borne; 0: unknown."""
        outlook, now = self.outlook, self._clock()
        if outlook.bearable is None:
            return 0.0
        near = [hour.expected for hour in outlook.hours if hour.start - LEAD <= now < hour.start + HOUR]
        return max(near, default=0.0) / outlook.bearable

    async def start(self) -> None:
        """Open the history, unless that is done. A server that cannot keep one forecasts from memory."""
        if self._task is None:
            self._history = await self._soon(self._open)
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None and self._history is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            await self._write(self._history)
            await self._soon(self._history.close)
            self._task = self._history = None
        self._disk.shutdown(wait=False)

    async def look(self) -> Outlook:
        """The outlook of this hour, made now if the hour is new."""
        async with self._looking:
            history, hour = self._history, int(self._clock() // HOUR)
            if history is not None and self.outlook.made != hour:
                await self._write(history)
                try:
                    self.outlook = await self._soon(lambda: look_ahead(history.hours(hour)))
                except sqlite3.Error as error:
                    log.warning("counted requests cannot be read, and the forecast stays as it is: %s", error)
            return self.outlook

    async def tick(self) -> None:
        """What is due every minute while the server runs."""
        self._counter.watch(self._clock(), self._crowded())
        if self._history is not None:
            await self._write(self._history)
        await self.look()

    async def _run(self) -> None:
        while True:
            try:
                await self.tick()
            except Exception:  # a bug here must not end the counting
                log.exception("requests cannot be forecast")
            await asyncio.sleep(MINUTE - self._clock() % MINUTE)

    def _open(self) -> History:
        try:
            return History(self._folder)
        except (OSError, sqlite3.Error) as error:
            locked = "locked" in str(error)
            log.warning(
                "counted requests are kept in memory only, since %s cannot be used: %s; %s",
                (self._folder or Path()) / NAME,
                error,
                "give each server a --data-dir of its own"
                if locked
                else "move the file away and start the server again",
            )
            return History(None)

    async def _write(self, history: History) -> None:
        minutes, now = self._counter.take(), int(self._clock() // MINUTE)
        try:
            await self._soon(lambda: history.write(minutes, now=now))
            self._failing = False
        except sqlite3.Error as error:
            self._counter.put_back(minutes)
            if not self._failing:  # once, not every minute
                log.warning("counted requests cannot be written and wait in memory for a day at most: %s", error)
            self._failing = True

    async def _soon(self, work: Callable[[], Result]) -> Result:
        """In the one thread for that: a statement never begins before the last has ended."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)
