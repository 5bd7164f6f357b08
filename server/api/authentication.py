"""Every request's owner by its API key: set on the request's state, or a 401; then the owner's limits."""

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from covervlm.server.access import Callers, Keys, RateLimited, configured, hashed
from covervlm.server.api.errors import describe, failure, respond
from covervlm.server.store.records import ANONYMOUS

PROBES = ("/health", "/ready")


class Authentication:
    """Pure ASGI. Without keys, everybody is one owner, and only the metrics may need a token.

    Probes and the playground's static files are open, and count against nobody's limits.
    """

    def __init__(self, app: ASGIApp, keys: Keys, callers: Callers, metrics_token: str | None) -> None:
        self._app = app
        self._keys = keys
        self._callers = callers
        self._metrics_hash = None if metrics_token is None else configured(metrics_token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_open(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""
        if scope["path"] == "/metrics" and self._metrics_hash is not None:
            if not hmac.compare_digest(hashed(key), self._metrics_hash):
                await _refuse("the metrics' token", scope, receive, send)
                return
            await self._app(scope, receive, send)
            return
        owner = self._keys.owner(key) if self._keys else ANONYMOUS
        if owner is None:
            await _refuse("an API key of this server", scope, receive, send)
            return
        scope.setdefault("state", {})["owner"] = owner
        try:
            with self._callers[owner].request():
                await self._app(scope, receive, send)
        except RateLimited as error:
            await respond(describe(error, scope["state"]["request_id"]), scope)(scope, receive, send)


def _is_open(method: str, path: str) -> bool:
    return path in PROBES or (method in ("GET", "HEAD") and (path == "/" or path.startswith("/ui/")))


async def _refuse(what: str, scope: Scope, receive: Receive, send: Send) -> None:
    answer = failure(
        401,
        f"Send {what} in the header 'Authorization: Bearer KEY'.",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )
    await respond(answer, scope)(scope, receive, send)
