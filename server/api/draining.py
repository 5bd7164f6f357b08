"""The server's last moments: not ready any more, nothing new is taken, what runs is finished."""

from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from covervlm.server.api.errors import UNAVAILABLE_SECONDS, failure, respond

_STILL_ANSWERED = ("/health", "/metrics")


@dataclass
class Drain:
    """`begun` is set once the server has been told to stop, before anything else happens."""

    begun: bool = False


class Draining:
    """Pure ASGI. Refuses new requests, /ready among them, once the drain has begun.

    Connections are closed with the refusal, so that clients and load balancers open the next one to another replica.
    """

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._drain.begun or scope["path"] in _STILL_ANSWERED:
            await self._app(scope, receive, send)
            return
        refusal = failure(
            503,
            "The server is shutting down; send the request to another replica.",
            code="engine_unavailable",
            headers={"Retry-After": str(UNAVAILABLE_SECONDS), "Connection": "close"},
        )
        await respond(refusal, scope)(scope, receive, send)
