"""Refuses requests whose bodies would take more memory than requests in flight may take together."""

import math

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from covervlm.server.engines.base import EngineOverloaded
from covervlm.server.inflight import InFlight, hold


class LoadShedding:
    """Pure ASGI. A declared length is refused before anything is read; bytes count once they have arrived.

    Lengths beyond all bounds are not this layer's to refuse: no later time would be better for them.
    """

    def __init__(self, app: ASGIApp, inflight: InFlight) -> None:
        self._app = app
        self._inflight = inflight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")[:20]
        if declared.isascii() and declared.isdigit() and int(declared) <= self._inflight.limit:
            self._inflight.check(int(declared))

        async def counted() -> Message:
            message = await receive()
            try:
                hold(len(message.get("body", b"")))
            except EngineOverloaded as error:
                # The framework takes any other exception from here for a body that cannot be parsed.
                raise HTTPException(503, str(error), {"Retry-After": str(math.ceil(error.retry_after))}) from None
            return message

        with self._inflight.request():
            await self._app(scope, counted, send)
