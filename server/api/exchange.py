"""The exchange with one client: events out, and an end to the work as soon as the client is gone."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Protocol, TypeVar

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

Result = TypeVar("Result")

DONE = "data: [DONE]\n\n"


async def unless_disconnected(request: Request, work: Coroutine[None, None, Result]) -> Result:
    """The result of `work`, which is cancelled, and ClientDisconnect raised, when the client goes away first.

    The request's body must have been read.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
        # An exception that held, by this frame, the task that holds it would keep all of a refused request's memory.
        del work, working, watching


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def event(json: str, name: str = "") -> str:
    """name: of its kind, where the API tells events apart by names."""
    return f"event: {name}\ndata: {json}\n\n" if name else f"data: {json}\n\n"


class Reply(Protocol):
    """An answer as one API spells it."""

    async def whole(self) -> bytes:
        """In JSON, when it is complete."""
        ...

    def events(self) -> AsyncIterator[str]:
        """As server-sent events, from the first chunk on; a failure on the way is the last of them."""
        ...


class Source(Protocol):
    """Where an answer comes from."""

    async def begin(self) -> None:
        """Wait for its first part, so that what is refused until then has a status of its own."""
        ...

    async def release(self) -> None:
        """Nobody waits for it any more."""
        ...


class EventStream(StreamingResponse):
    """Sends `events`; `release` runs once they have ended, whether sent, failed or abandoned, also before the first."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], release: Callable[[], Awaitable[None]]) -> None:
        # Proxies must not gather events: X-Accel-Buffering is nginx's name for that.
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._release()


async def sent(reply: Reply, source: Source, *, stream: bool) -> Response:
    """The reply whole, or as events; the source is released once it is sent, or fails before."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(source.release)
        if not stream:
            return Response(await reply.whole(), media_type="application/json")
        await source.begin()
        stack.pop_all()
        return EventStream(reply.events(), source.release)
