"""Server-sent events that end, and release what they hold, as soon as the client goes away."""

from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

DONE = "data: [DONE]\n\n"


def event(json: str) -> str:
    return f"data: {json}\n\n"


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
