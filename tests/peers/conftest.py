"""A `covervlm serve` process of the main environment, for clients that live in an environment of their own."""

import base64
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
START_SECONDS = 300
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
"""litellm asks the web for its price list otherwise."""


@dataclass(frozen=True)
class Scene:
    """An example scene as a data URL, with the question and answer beside it."""

    picture: str
    question: str
    answer: str


@pytest.fixture(scope="session")
def base_url() -> Iterator[str]:
    serve = [ROOT / ".venv" / "bin" / "covervlm", "serve", "--port", "0", "--threads", "1"]
    command = [*serve, "--api-key", "sesame", "--tool-format", "json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    overdue = threading.Timer(START_SECONDS, process.kill)
    overdue.start()
    try:
        url = next((line.split()[-1] for line in process.stdout if line.startswith("covervlm serves ")), None)
        overdue.cancel()
        assert url, "the server did not start"
        yield f"{url}/v1"
    finally:
        overdue.cancel()
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="session")
def scene() -> Scene:
    folder = ROOT / "server" / "demo" / "scenes"
    entry = json.loads((folder / "scenes.json").read_text())[0]
    picture = base64.b64encode((folder / entry["file"]).read_bytes()).decode()
    return Scene(f"data:image/png;base64,{picture}", entry["question"], entry["answer"])


@pytest.fixture
def messages(scene: Scene) -> list[dict[str, object]]:
    content = [{"type": "image_url", "image_url": {"url": scene.picture}}, {"type": "text", "text": scene.question}]
    return [{"role": "user", "content": content}]
