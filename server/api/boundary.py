"""The outermost layer of the app: request ids, body size, HTTP metrics, and an answer where there is a bug."""

import asyncio
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from covervlm.server.api.errors import describe
from covervlm.server.api.metrics import Metrics

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""Of every response that has none of its own."""

CLIENT_CLOSED_REQUEST = 499


class Boundary:
    """Pure ASGI, because wrapping the response stream would hide from it that the client is gone.

    A request's own X-Request-Id is kept where it is short and plain, and comes back in the response.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, max_body_bytes: int, receive_timeout: float) -> None:
        self._app = app
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._receive_timeout = receive_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers_out = MutableHeaders(scope=message)
                headers_out["X-Request-Id"] = request_id
                for name, value in _SECURITY_HEADERS.items():
                    headers_out.setdefault(name, value)
            await send(message)

        started = time.perf_counter()
        with self._metrics.http_in_flight.track_inprogress():
            try:
                await self._app(scope, self._limited(headers, receive), send_with_id)
            except ClientDisconnect:
                status = status or CLIENT_CLOSED_REQUEST
            except Exception as error:
                answer = describe(error, request_id).response()
                if status:
                    raise
                await answer(scope, receive, send_with_id)
            finally:
                route = getattr(scope.get("route"), "path", "unknown")
                self._metrics.http_requests.labels(route, status or CLIENT_CLOSED_REQUEST).inc()
                self._metrics.http_seconds.labels(route).observe(time.perf_counter() - started)

    def _limited(self, headers: Headers, receive: Receive) -> Receive:
        """`receive`, which ends a body that is too long or too slow.

        A declared length is refused at once, but not believed: a chunked body may come with one all the same.
        """
        declared = headers.get("content-length", "")
        too_long = HTTPException(413, f"The body has more than {self._max_body_bytes} bytes.")
        deadline = asyncio.get_running_loop().time() + self._receive_timeout
        length, complete = 0, False

        async def limited() -> Message:
            nonlocal length, complete
            if declared.isascii() and declared.isdigit() and int(declared[:20]) > self._max_body_bytes:
                raise too_long
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "The body did not arrive in time.", {"Connection": "close"}) from None
            length += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if length > self._max_body_bytes:
                raise too_long
            return message

        return limited
