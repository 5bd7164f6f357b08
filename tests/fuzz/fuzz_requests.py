"""Short bodies through the whole application over a scripted engine: an answer, or an error in OpenAI's schema.

A NUL stands between a route's path and the body.
"""

import asyncio
import json

from covervlm.server import create_app
from covervlm.server.api.body import BodyRoute
from covervlm.server.settings import Settings
from tests.server.api.scripted import ScriptedEngine

TRACED = ("covervlm.server.api", "covervlm.server.media", "covervlm.server.tools", "covervlm.server.core")
HEADERS = [(b"host", b"localhost"), (b"content-type", b"application/json")]
TOO_LONG = 20
"""Seconds after which an answer is taken for one that never comes."""

loop = asyncio.new_event_loop()
engine = ScriptedEngine()
app = create_app(Settings(clip_model="none", remote_media=False, log_level="error"), engine)
PATHS = {route.path.encode() for route in app.routes if isinstance(route, BodyRoute) and route.body_field}
life = app.router.lifespan_context(app)  # which the process ends with: its threads are gone before it could be left
loop.run_until_complete(life.__aenter__())


def target(data: bytes) -> None:
    path, _, body = data.partition(b"\0")
    if path not in PATHS:
        return
    status, kind, answer = loop.run_until_complete(asyncio.wait_for(post(path, body), TOO_LONG))
    engine.requests.clear()
    engine.released.clear()
    assert status == 200 or 400 <= status < 500, (status, answer)
    if status != 200:
        assert set(json.loads(answer)["error"]) >= {"message", "type"}
    elif b"json" in kind:
        json.loads(answer, parse_constant=refuse_constant)


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


async def post(path: bytes, body: bytes) -> tuple[int, bytes, bytes]:
    """Status, content type and body of the answer."""
    messages, sent = [{"type": "http.request", "body": body, "more_body": False}], []

    async def receive() -> dict:
        if messages:
            return messages.pop()
        return await asyncio.Future()  # the client waits

    async def send(message: dict) -> None:
        sent.append(message)

    headers = [*HEADERS, (b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": path.decode()}
    scope |= {"raw_path": path, "query_string": b"", "root_path": "", "headers": headers}
    scope |= {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000)}
    await app(scope, receive, send)
    start, *rest = sent
    return start["status"], dict(start["headers"])[b"content-type"], b"".join(part.get("body", b"") for part in rest)
