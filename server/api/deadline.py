"""Every request's time limit: what takes longer is ended, wherever it is, and told so."""

import asyncio
import json
import math

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from covervlm.server.api.errors import Failure, failure, respond
from covervlm.server.api.event_stream import event

HEADER = "X-Request-Timeout"


class Deadline:
    """Pure ASGI. The limit is `seconds`, or less where the request's own X-Request-Timeout header says so.

    Ending a request cancels it, which frees its place in the engine within a decoding step. The caller gets a 504, or
    an event with the same error where a stream has begun; one who does not even read what was sent before gets nothing
    more. GET requests have no limit: they are short, or watch a job for as long as it takes.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        wish = Headers(scope=scope).get(HEADER)
        seconds = self._limit(wish)
        if seconds is None:
            refusal = failure(400, f"{HEADER} is a number of seconds above 0, e.g. 2.5.", code="invalid_value")
            await respond(refusal, scope)(scope, receive, send)
            return
        started = streams = stuck = False

        async def watched(message: Message) -> None:
            nonlocal started, streams, stuck
            if message["type"] == "http.response.start":
                streams = Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream")
            stuck = True
            await send(message)
            stuck, started = False, True

        try:
            async with asyncio.timeout(seconds) as limit:
                await self._app(scope, receive, watched)
        except TimeoutError:
            if not limit.expired():
                raise
            error = _late(seconds)
            if not started:
                await respond(error, scope)(scope, receive, send)
            elif streams and not stuck:
                last = event(json.dumps(error.body)).encode()
                await send({"type": "http.response.body", "body": last, "more_body": False})

    def _limit(self, wish: str | None) -> float | None:
        """None for a header that is no time."""
        if wish is None:
            return self._seconds
        try:
            seconds = float(wish)
        except ValueError:
            return None
        return min(seconds, self._seconds) if math.isfinite(seconds) and seconds > 0 else None


def _late(seconds: float) -> Failure:
    return failure(504, f"The request was not answered within {seconds:g} seconds.", code="request_timeout")
