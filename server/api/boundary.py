"""The outermost layer of the app: request ids, body size, HTTP metrics, and an answer where there is a bug."""

import asyncio
import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from covervlm.server import logs
from covervlm.server.api.errors import describe, respond
from covervlm.server.api.metrics import Metrics
from covervlm.server.api.request_record import RequestRecord
from covervlm.server.tracing import Tracing

logger = logging.getLogger("covervlm.request")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""Of every response that has none of its own."""

CLIENT_CLOSED_REQUEST = 499
PROBES = frozenset({"/health", "/ready", "/metrics"})
"""Asked every few seconds by machines; their lines show at level debug."""


class Boundary:
    """Pure ASGI, because wrapping the response stream would hide from it that the client is gone.

    A request's own X-Request-Id is kept where it is short and plain, and comes back in the response.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        tracing: Tracing | None,
        max_body_bytes: int,
        receive_timeout: float,
        keeps_content: bool,
    ) -> None:
        self._app = app
        self._tracing = tracing
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._receive_timeout = receive_timeout
        self._keeps_content = keeps_content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        name = headers.get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(name):
            name = uuid.uuid4().hex
        record = RequestRecord(name, scope["method"], keeps_content=self._keeps_content)
        scope.setdefault("state", {}).update(request_id=name, record=record)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers_out = MutableHeaders(scope=message)
                headers_out["X-Request-Id"] = name
                for header, value in _SECURITY_HEADERS.items():
                    headers_out.setdefault(header, value)
            await send(message)

        token = logs.request_id.set(name)
        try:
            with self._metrics.http_in_flight.track_inprogress():
                await self._app(scope, self._limited(headers, receive), send_with_id)
        except ClientDisconnect:
            pass
        except Exception as error:
            failure = describe(error, name)
            if record.status:
                raise
            await respond(failure, scope)(scope, receive, send_with_id)
        finally:
            self._end(scope, record, headers)
            logs.request_id.reset(token)

    def _end(self, scope: Scope, record: RequestRecord, headers: Headers) -> None:
        record.seconds = record.elapsed
        record.status = record.status or CLIENT_CLOSED_REQUEST
        record.route = getattr(scope.get("route"), "path", "unknown")
        record.owner = scope["state"].get("owner", "")
        self._metrics.http_requests.labels(record.route, record.status).inc()
        self._metrics.http_seconds.labels(record.route).observe(record.seconds)
        if self._tracing is not None and record.route not in PROBES:
            record.trace_id = self._tracing.record(record, headers)
        level = logging.DEBUG if record.route in PROBES else logging.WARNING if record.status >= 500 else logging.INFO
        logger.log(level, "request", extra={"fields": record.line()})

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
