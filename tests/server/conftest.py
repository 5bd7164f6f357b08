"""The demo model behind the real engine, and requests to send it."""

import asyncio
import base64
import gc
import hashlib
import io
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace

import pytest
import pytest_asyncio
import torch
from demo_model.scenes import make_scene
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from covervlm.server.core.generation import (
    GenerationChunk,
    GenerationRequest,
    ImagePart,
    Message,
    PruningPolicy,
    SamplingParams,
)
from covervlm.server.demo import model_path
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from covervlm.server.serving import spare_what_is_loaded


@pytest.fixture(scope="module")
def spared() -> Iterator[None]:
    """Collections of garbage spare what other tests have left, as a server's spare what it has loaded."""
    spare_what_is_loaded()
    yield
    gc.unfreeze()


@pytest.fixture
def root_handlers() -> Iterator[None]:
    """Puts the log of this process back as it was: others write to it later, when what one test captured is closed."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("covervlm", "uvicorn")}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    for name, value in levels.items():
        logging.getLogger(name).setLevel(value)


@pytest.fixture(scope="session")
def scene() -> Callable[[int], Image.Image]:
    """A generated picture by number."""
    return lambda number: make_scene(60_000_000 + number).image


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine(TransformersEngineConfig(str(model_path()), threads=1))
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture(scope="session")
def plain():
    """The demo model and processor as transformers alone loads them."""
    model = AutoModelForImageTextToText.from_pretrained(model_path(), dtype=torch.float32).eval()
    return SimpleNamespace(model=model, processor=AutoProcessor.from_pretrained(model_path()))


def image_part(image: Image.Image) -> ImagePart:
    return ImagePart(image, hashlib.sha256(image.tobytes()).hexdigest())


@pytest.fixture(scope="session")
def png_url() -> Callable[[Image.Image], str]:
    """A picture as the data URL that clients send."""

    def make(image: Image.Image) -> str:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

    return make


@pytest.fixture(scope="session")
def ask() -> Callable[..., GenerationRequest]:
    """ask(image or None, text, pruning={...}, **sampling): a request, greedy unless told otherwise."""

    def make(image: Image.Image | None, text: str, *, pruning: dict | None = None, **sampling) -> GenerationRequest:
        parts = [image_part(image)] if image is not None else []
        parts += [text] if text else []
        params = SamplingParams(**{"temperature": 0.0} | sampling)
        return GenerationRequest("test", (Message("user", tuple(parts)),), params, PruningPolicy(**pruning or {}))

    return make


@pytest.fixture(scope="session")
def answer() -> Callable:
    """Run a request to its end: text, token strings, finish reason of each choice, and the prompt report."""

    async def run(engine: TransformersEngine, request: GenerationRequest) -> SimpleNamespace:
        chunks: list[GenerationChunk] = [chunk async for chunk in engine.generate(request)]
        choices = []
        for index in range(request.sampling.n):
            mine = [c for c in chunks if c.index == index]
            choices.append(
                SimpleNamespace(
                    text="".join(c.text for c in mine),
                    tokens=[entry.token for c in mine for entry in c.logprobs],
                    count=sum(c.tokens for c in mine),
                    finish_reason=mine[-1].finish_reason,
                )
            )
        return SimpleNamespace(prompt=chunks[0].prompt, choices=choices, text=choices[0].text, chunks=chunks)

    return run


class Demo:
    """The demo model behind its engine, on a loop of its own, so that hypothesis may call it."""

    def __init__(self, engine, ask, answer, loop):
        self._engine, self._ask, self._answer, self._loop = engine, ask, answer, loop

    def __call__(self, grammar, image=None, **sampling):
        request = self._ask(image, "Describe the image.", grammar=grammar, **{"max_tokens": 48} | sampling)
        return self._loop.run_until_complete(self._answer(self._engine, request))


@pytest.fixture(scope="module")
def demo(ask, answer) -> Iterator[Demo]:
    loop = asyncio.new_event_loop()
    engine = TransformersEngine(TransformersEngineConfig(str(model_path()), threads=1))
    loop.run_until_complete(engine.start())
    yield Demo(engine, ask, answer, loop)
    loop.run_until_complete(engine.stop())
    loop.close()
