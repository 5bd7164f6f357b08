"""One request's events on their way from the engine's thread to the reader on the event loop."""

import asyncio
import contextlib

from covervlm.server.core.errors import EngineError, EngineUnavailable
from covervlm.server.engines.embedded.admission import Event, Job

MAX_UNREAD = 4096
"""Chunks that a slow reader may be behind. The engine waits for nobody, so this is what bounds memory."""


class Mailbox:
    """Bounded: a reader who is too far behind loses the request, so that its slot and its memory are free again."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def post(self, job: Job, event: Event) -> None:
        """From any thread."""
        # The loop is closed only if the server is going down with this request unread.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._put, job, event)

    def close(self) -> None:
        """On the event loop: there will be no more events."""
        self._events.put_nowait(EngineUnavailable("The engine has failed; send the request to another replica."))

    async def next(self) -> Event:
        """The next event; raises it where it is an exception."""
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event

    def _put(self, job: Job, event: Event) -> None:
        if self._events.qsize() < MAX_UNREAD:
            self._events.put_nowait(event)
        elif not job.cancelled:
            job.cancelled = True
            self._events = asyncio.Queue()
            self._events.put_nowait(
                EngineError(f"The answer was abandoned: its reader was {MAX_UNREAD} chunks behind.")
            )
