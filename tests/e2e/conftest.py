"""The demo model behind a live server."""

import base64
import io
from collections.abc import Callable, Iterator

import openai
import pytest
from demo_model.scenes import make_scene
from demo_model.splits import FIRST_SEED
from PIL import Image

from covervlm.server import create_app
from covervlm.server.settings import Settings
from tests.server.api.live import live_server

FIRST_SCENE = FIRST_SEED["tests"]


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # It reads all of every prompt, so that equal ones are equal bit by bit.
    settings = Settings(threads=1, data_dir=tmp_path_factory.mktemp("data"), prefix_cache_bytes=0)
    with live_server(create_app(settings)) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def scene() -> Callable[[int], Image.Image]:
    return lambda number: make_scene(FIRST_SCENE + number).image


@pytest.fixture(scope="session")
def chat() -> Callable[..., dict[str, object]]:
    """Arguments of `client.chat.completions.create`: a question about images, greedy unless told otherwise."""

    def arguments(question: str, *images: Image.Image, pruning: object = None, **fields: object) -> dict[str, object]:
        content: list[dict[str, object]] = []
        for image in images:
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            data = base64.b64encode(buffer.getvalue()).decode()
            content.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
        content.append({"type": "text", "text": question})
        body = {"vision_pruning": pruning} if pruning else {}
        extra = {
            name: fields.pop(name) for name in ("top_k", "min_p", "repetition_penalty", "ignore_eos") if name in fields
        }
        return {
            "model": "demo",
            "temperature": 0,
            "messages": [{"role": "user", "content": content}],
            "extra_body": body | extra,
            **fields,
        }

    return arguments
