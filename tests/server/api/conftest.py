"""The real application over a scripted engine."""

from collections.abc import Iterator

import pytest
from PIL import Image
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.settings import Settings
from tests.server.api.scripted import ScriptedEngine, data_url
from tests.server.api.slow_callbacks import watched


@pytest.fixture(autouse=True)
def slow_callbacks() -> Iterator[list[str]]:
    """Every test of the API fails where a callback keeps the event loop from answering others for too long."""
    with watched() as slow:
        yield slow
    assert slow == [], "the event loop was kept busy"


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def client(engine: ScriptedEngine) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(), engine)) as client:
        yield client


@pytest.fixture
def red_png() -> str:
    return data_url(Image.new("RGB", (8, 6), "red"))
