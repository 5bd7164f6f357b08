"""The real application with the demo CLIP over a scripted language model, and callers with names of their own."""

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from demo_model.scenes import COLOR_NAMES, SHAPES, make_scene
from httpx_sse import EventSource
from PIL import Image
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from covervlm.server import create_app
from covervlm.server.core.caller import Caller
from covervlm.server.settings import Settings
from tests.server.api.scripted import ScriptedEngine, data_url

SHAPES, COLORS = list(SHAPES), list(COLOR_NAMES)
OTHER = {"X-Owner": "somebody-else"}


class Owners:
    """Stands for authentication: the header X-Owner says who calls."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for name, value in scope.get("headers", ()):
            if name == b"x-owner":
                scope["state"]["caller"] = Caller(value.decode())
        await self._app(scope, receive, send)


@contextlib.contextmanager
def clip_client(folder: Path, engine: ScriptedEngine | None = None) -> Iterator[TestClient]:
    app = create_app(Settings(data_dir=folder), engine or ScriptedEngine())
    app.user_middleware.append(type(app.user_middleware[0])(Owners))
    with TestClient(app) as client:
        yield client


def scenes(n: int, first: int = 0) -> list[Any]:
    """Pictures of one object each."""
    return [make_scene(90_500_000 + first + i, n_objects=1) for i in range(n)]


def urls(n: int, first: int = 0) -> list[str]:
    return [data_url(scene.image) for scene in scenes(n, first)]


def noise(seed: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return data_url(Image.fromarray(pixels))


def finished(client: TestClient, job: str, **kwargs: Any) -> dict[str, Any]:
    """The job's final state, from its events."""
    states = events(client, job, **kwargs)
    assert states[-1]["finished"] is not None
    return states[-1]


def events(client: TestClient, job: str, **kwargs: Any) -> list[dict[str, Any]]:
    with client.stream("GET", f"/v1/jobs/{job}/events", **kwargs) as response:
        assert response.status_code == 200, response.read()
        *states, last = EventSource(response).iter_sse()
    assert last.data == "[DONE]"
    return [state.json() for state in states]


def wait_for(condition: Any, seconds: float = 30) -> Any:
    """The first true value of `condition`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "the condition never came true"
    return value


def error(response: Any, status: int) -> dict[str, Any]:
    """The error of a refused request, in OpenAI's schema; Anthropic's names the parameter in its message."""
    assert response.status_code == status, response.text
    if response.request.url.path.startswith("/v1/messages"):
        assert set(response.json()) == {"type", "error", "request_id"}
        detail = response.json()["error"]
        assert set(detail) == {"message", "type"}
        named = re.match(r"(?:Invalid|Missing required parameter:|Unknown parameter:)? ?'(.+?)'", detail["message"])
        named = named or re.match(r"([\w.\[\]]+): ", detail["message"])
        return {**detail, "param": named and named[1].removeprefix("body"), "code": None}
    assert set(response.json()) == {"error"}
    detail = response.json()["error"]
    assert set(detail) == {"message", "type", "param", "code"}
    return detail
