"""Whether a request is admitted, for whom, and for how long."""

import asyncio
import hmac
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from covervlm.server.api.errors import UNAVAILABLE_SECONDS, Failure, describe, failure, last_event, respond
from covervlm.server.core.caller import ANONYMOUS, Callers, InFlight
from covervlm.server.core.errors import EngineOverloaded, RateLimited
from covervlm.server.limits.keys import Keys, configured, hashed

PROBES = ("/health", "/ready")
TIMEOUT_HEADER = "X-Request-Timeout"
_MEASURES = ("/metrics", "/v1/forecast")
"""Of the server as a whole, for its operator: the metrics' token opens them where there is one, and no API key does."""
_ANSWERED_WHILE_DRAINING = ("/health", "/metrics")


@dataclass
class Drain:
    """`begun` is set once the server has been told to stop, before anything else happens."""

    begun: bool = False


class Admission:
    """Pure ASGI. Refuses, in this order: everything while the server drains, requests without an accepted key, those
    beyond their caller's limits, those whose declared body would not fit into memory, and unreadable time limits.

    An admitted request has its `Caller` in its state. On a server without keys, all callers are one owner, and only
    the operator's measures may need a token. Probes and the playground's files are open to everybody: no caller, no
    limits.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        drain: Drain,
        keys: Keys,
        metrics_token: str | None,
        callers: Callers,
        memory: InFlight,
        seconds: float,
        expected: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """expected: a context in which somebody waits for an answer, whichever part of the server makes it."""
        self._expected = expected
        self._app = app
        self._drain = drain
        self._keys = keys if keys else None
        self._metrics_hash = None if metrics_token is None else configured(metrics_token)
        self._callers = callers
        self._memory = memory
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _headers_only(send)
        if self._drain.begun and scope["path"] not in _ANSWERED_WHILE_DRAINING:
            await respond(_draining(), scope)(scope, receive, send)
        elif _is_open(scope["method"], scope["path"]):
            await self._within_time(scope, receive, send)
        else:
            await self._for_caller(scope, receive, send)

    async def _for_caller(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()
        if scope["path"] in _MEASURES and self._metrics_hash is not None:
            if not hmac.compare_digest(hashed(key), self._metrics_hash):
                await respond(_unauthorized(key, "the metrics' token"), scope)(scope, receive, send)
                return
            await self._within_time(scope, receive, send)
            return
        if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            refusal = failure(415, "Compressed bodies are not accepted; send this one without Content-Encoding.")
            await respond(refusal, scope)(scope, receive, send)
            return
        owner = self._keys.owner(key) if self._keys is not None else ANONYMOUS
        if owner is None:
            await respond(_unauthorized(key, "an API key of this server"), scope)(scope, receive, send)
            return
        scope["state"]["record"].owner = owner
        # A length beyond the limit itself is refused elsewhere: trying again later, as a 503 says, would not help.
        declared = headers.get("content-length", "")[:20]
        length = int(declared) if declared.isascii() and declared.isdigit() else 0
        try:
            with self._callers.request(owner) as caller:
                scope["state"]["caller"] = caller
                if delay := caller.pace.request():
                    await asyncio.sleep(delay)
                caller.check_room(length if length <= self._memory.limit else 0)
                # GET requests are short, or watch a job for as long as it takes.
                with nullcontext() if scope["method"] == "GET" else self._expected():
                    await self._within_time(scope, receive, send)
        except (RateLimited, EngineOverloaded) as error:
            await respond(describe(error, scope["state"]["request_id"]), scope)(scope, receive, send)

    async def _within_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The limit is the server's, or less where the request's own X-Request-Timeout header says so.

        Ending a request cancels it, which frees its place in the engine within a decoding step. The caller gets a 504,
        or an event with the same error where a stream has begun; a caller that has not read what was sent before gets
        nothing more. GET requests have no limit: they are short, or watch a job for as long as it takes.
        """
        if scope["method"] in ("GET", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        seconds = self._time_limit(Headers(scope=scope).get(TIMEOUT_HEADER))
        if seconds is None:
            refusal = failure(400, f"{TIMEOUT_HEADER} must be a number of seconds above 0.", code="invalid_value")
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
            late = failure(504, f"The request was not answered within {seconds:g} seconds.", code="request_timeout")
            if not started:
                await respond(late, scope)(scope, receive, send)
            elif streams and not stuck:
                last = last_event(late, scope).encode()
                await send({"type": "http.response.body", "body": last, "more_body": False})

    def _time_limit(self, wish: str | None) -> float | None:
        """None for a header that is not a number of seconds above 0."""
        if wish is None:
            return self._seconds
        try:
            seconds = float(wish)
        except ValueError:
            return None
        return min(seconds, self._seconds) if math.isfinite(seconds) and seconds > 0 else None


def _is_open(method: str, path: str) -> bool:
    return path in PROBES or (method == "GET" and (path in ("/", "/docs") or path.startswith("/ui/")))


def _draining() -> Failure:
    """Connections are closed with it, so that clients and load balancers open the next one to another replica."""
    return failure(
        503,
        "The server is shutting down; send the request to another replica.",
        code="engine_unavailable",
        headers={"Retry-After": str(UNAVAILABLE_SECONDS), "Connection": "close"},
    )


def _unauthorized(key: str, what: str) -> Failure:
    """`key`: what was sent, "" for none."""
    send = f"Send {what} in the header 'Authorization: Bearer KEY', or 'x-api-key: KEY'."
    return failure(
        401,
        f"The key that was sent is not {what}. Check it, or ask the operator for a new one." if key else send,
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _headers_only(send: Send) -> Send:
    """`send`, which leaves out the body: turns the answer to a GET request into that to a HEAD request."""

    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body"})

    return send_head
