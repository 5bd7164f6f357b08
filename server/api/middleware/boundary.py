"""The outermost layer of the app: request ids, bounds of the body, HTTP metrics, and an answer where there is a bug."""

import asyncio
import logging
import math
import re
import time
import uuid
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from covervlm.server.api.errors import Failure, describe, failure, respond
from covervlm.server.core.errors import EngineOverloaded
from covervlm.server.limits.hosts import Hosts
from covervlm.server.telemetry import logs
from covervlm.server.telemetry.metrics import Metrics
from covervlm.server.telemetry.request_record import RequestRecord
from covervlm.server.telemetry.tracing import Tracing

logger = logging.getLogger("covervlm.request")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""Of every response that has none of its own."""
_FORMS = frozenset({"", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"})
"""Content types that web pages may send to any server without a preflight request."""

CLIENT_CLOSED_REQUEST = 499
_NO_DEMAND = frozenset({401, 403, 404, 405})
"""Of requests by strangers and to nowhere; those that were refused for want of room are demand all the same."""
SLOWEST = 256 * 1024
"""Bytes a second at which a body may arrive once its first seconds are over."""
POLLED = frozenset({"/health", "/ready", "/metrics"})
"""Asked every few seconds by machines; their lines show at level debug."""


class Boundary:
    """Pure ASGI, because a wrapped response stream would not learn that its client is gone.

    A request's own X-Request-Id is kept where it is short and plain, and comes back in the response. `count` is called
    with the Unix time at which a request came that brings work, refused for want of room or not.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        count: Callable[[float], None],
        tracing: Tracing | None,
        hosts: Hosts,
        max_body_bytes: int,
        receive_timeout: float,
        keeps_content: bool,
    ) -> None:
        self._hosts = hosts
        self._app = app
        self._tracing = tracing
        self._metrics = metrics
        self._count = count
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
                refusal = self._refusal(scope, headers)
                app = self._app if refusal is None else respond(refusal, scope)
                await app(scope, self._limited(scope, headers, receive), send_with_id)
        except ClientDisconnect:
            pass
        except Exception as error:
            told = describe(error, name)
            if record.status:
                raise
            await respond(told, scope)(scope, receive, send_with_id)
        finally:
            self._end(scope, record, headers)
            logs.request_id.reset(token)

    def _refusal(self, scope: Scope, headers: Headers) -> Failure | None:
        """Refuses what a web page in somebody's browser could send without permission."""
        host = headers.get("host", "")
        if not self._hosts.allow(host, (scope.get("server") or ("",))[0]):
            message = f"The server does not answer to the host name {host[:200]!r}; --allowed-hosts would allow it."
            return failure(403, message, code="host_not_allowed")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and "origin" in headers and kind in _FORMS:
            message = "Web pages must send Content-Type: application/json, or application/octet-stream for files."
            return failure(415, message, code="unsupported_media_type")
        return None

    def _end(self, scope: Scope, record: RequestRecord, headers: Headers) -> None:
        record.seconds = time.perf_counter() - record.started
        record.status = record.status or CLIENT_CLOSED_REQUEST
        record.route = getattr(scope.get("route"), "path", "unknown")
        self._metrics.http_requests.labels(record.route, record.status).inc()
        self._metrics.http_seconds.labels(record.route).observe(record.seconds)
        if record.method == "POST" and record.status not in _NO_DEMAND:
            self._count(record.unix_time)
            self._metrics.demand.inc()
        if self._tracing is not None and record.route not in POLLED:
            record.trace_id = self._tracing.record(record, headers)
        level = logging.DEBUG if record.route in POLLED else logging.WARNING if record.status >= 500 else logging.INFO
        logger.log(level, "request", extra={"fields": _line(record)})

    def _limited(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """`receive`, which ends a body that is too long, too slow, or for whose memory there is no room.

        A declared length over the limit is refused at once; others are not trusted, since chunked bodies may have one.
        """
        declared = headers.get("content-length", "")
        too_long = HTTPException(413, f"The body has more than {self._max_body_bytes} bytes, the most allowed here.")
        deadline = asyncio.get_running_loop().time() + self._receive_timeout
        length, complete = 0, False
        record: RequestRecord = scope["state"]["record"]

        async def limited() -> Message:
            try:
                return await checked()
            except HTTPException:
                if not record.status:
                    raise
                # The answer has begun: the body is no longer read, and who calls waits for the client to leave.
                return await receive()

        async def checked() -> Message:
            nonlocal length, complete, deadline
            if declared.isascii() and declared.isdigit() and int(declared[:20]) > self._max_body_bytes:
                raise too_long
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline + length / SLOWEST):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "The body did not arrive in time.", {"Connection": "close"}) from None
            size = len(message.get("body", b""))
            length += size
            complete = not message.get("more_body", False)
            if length > self._max_body_bytes:
                raise too_long
            caller = scope["state"].get("caller")  # open paths have none, and read no bodies
            try:
                if caller is not None and size:
                    caller.hold(size)
            except EngineOverloaded as error:
                # The framework takes any other exception from here for a body that cannot be parsed.
                raise HTTPException(503, str(error), {"Retry-After": str(math.ceil(error.retry_after))}) from None
            # While this waits, the client's system is told that it is not read from.
            if caller is not None and not complete and (delay := caller.pace.body(size)):
                deadline += delay
                await asyncio.sleep(delay)
            return message

        return limited


def _line(record: RequestRecord) -> dict[str, Any]:
    """The fields of the log's line; what does not apply is left out."""
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "method": record.method,
        "route": record.route,
        "status": record.status,
        "seconds": round(record.seconds, 6),
        "owner": record.owner[:8] or None,
        "model": record.model or None,
        "error": record.error,
        "time_to_first_token": record.first_token_seconds and round(record.first_token_seconds, 6),
        "generation_tokens": record.generation_tokens,
        "finish_reason": record.finish_reason,
        "question": record.question,
        "trace_id": record.trace_id,
    }
    if record.prompt is not None:
        fields |= {"prompt_tokens": record.prompt.prompt_tokens, "pruning": record.prompt.method}
        fields |= {"vision_tokens_before": record.vision_tokens_before}
        fields |= {"vision_tokens_after": record.vision_tokens_after}
    return {name: value for name, value in fields.items() if value is not None}
