"""A live server over the demo model, and scripted transports for what a healthy server never does."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from covervlm.server import create_app
from covervlm.server.demo import ExampleScene, example_scenes
from covervlm.server.settings import Settings
from tests.server.api.live import live_server


@pytest.fixture(scope="package")
def url() -> Iterator[str]:
    with live_server(create_app(Settings(model="demo", device="cpu", threads=1))) as url:
        yield url


@pytest.fixture(scope="package")
def scene() -> ExampleScene:
    return example_scenes()[0]


@pytest.fixture
def picture(scene: ExampleScene) -> Path:
    return scene.path


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COVERVLM_BASE_URL", raising=False)
    monkeypatch.delenv("COVERVLM_API_KEY", raising=False)


@dataclass
class Script:
    """Answers requests with its steps, in turn, and remembers them."""

    steps: list[httpx.Response | Exception]
    requests: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step


@pytest.fixture
def script() -> Callable[..., Script]:
    return lambda *steps: Script(list(steps))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the clients would have slept."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("covervlm.clients.calls.sleep", slept.append)
    monkeypatch.setattr("covervlm.clients.calls.async_sleep", sleep)
    return slept
