"""How long a server's event loop leaves everybody waiting, told by a beat on it."""

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.server.api.live import LiveServer

INTERVAL = 0.01
LONGEST = 0.25
"""Seconds that /health may take whatever anybody sends."""


class Heartbeat:
    """`stall`: the most work of the loop's own thread between two beats. `late`: the latest beat, by the clock.

    The first is the processor's time, which other programs and threads do not lengthen; collections of garbage, of the
    tests' own above all, are not counted.
    """

    def __init__(self) -> None:
        self.stall = self.late = 0.0
        self._thread = 0
        self._collecting = self._collected = 0.0
        self._beaten: tuple[float, float] | None = None
        self._next: asyncio.TimerHandle | None = None

    def beat(self) -> None:
        loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        now = time.thread_time() - self._collected, loop.time()
        if self._beaten is not None:
            self.stall = max(self.stall, now[0] - self._beaten[0])
            self.late = max(self.late, now[1] - self._beaten[1] - INTERVAL)
        self._beaten = now
        self._next = loop.call_later(INTERVAL, self.beat)

    def end(self) -> None:
        if self._next is not None:
            self._next.cancel()

    def collection(self, phase: str, _: object) -> None:
        if threading.get_ident() != self._thread:
            return
        if phase == "start":
            self._collecting = time.thread_time()
        else:
            self._collected += time.thread_time() - self._collecting


@contextmanager
def heartbeat(server: LiveServer) -> Iterator[Heartbeat]:
    """Of a server that runs in this process."""
    beat = Heartbeat()
    gc.callbacks.append(beat.collection)
    server.loop.call_soon_threadsafe(beat.beat)
    try:
        yield beat
    finally:
        server.loop.call_soon_threadsafe(beat.end)
        gc.callbacks.remove(beat.collection)
