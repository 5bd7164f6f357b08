"""Real vLLM, started once for every checkpoint, with the transformers engine beside it as the reference."""

import hashlib
import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from chat_bodies import SEED, grained
from demo_model.scenes import make_scene
from tiny_internvl import save_tiny_internvl
from tiny_llava import save_tiny_llava_next
from tiny_onevision import save_tiny_onevision
from tiny_qwen import save_tiny_qwen
from tiny_qwen3 import save_tiny_qwen3

from covervlm.server.core.generation import (
    GenerationChunk,
    GenerationRequest,
    ImagePart,
    Message,
    PromptReport,
    PruningPolicy,
    SamplingParams,
)
from covervlm.server.demo import model_path

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
HERE = Path(__file__).parent
CURE = str(HERE / "torchvision_cure")
os.environ["PYTHONPATH"] = CURE
sys.path.insert(0, CURE)
importlib.import_module("sitecustomize") if "sitecustomize" not in sys.modules else None

from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig  # noqa: E402
from covervlm.server.engines.vllm.engine import VllmEngine, VllmEngineConfig  # noqa: E402


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """One folder for every architecture. vLLM's attention on a CPU has no heads narrower than 32."""
    folders = {
        name: tmp_path_factory.mktemp(name)
        for name in ("llava_next", "llava_onevision", "internvl", "qwen2_5_vl", "qwen3_vl")
    }
    save_tiny_llava_next(folders["llava_next"], hidden_size=128)
    save_tiny_onevision(folders["llava_onevision"], hidden_size=128)
    save_tiny_internvl(folders["internvl"], hidden_size=128)
    save_tiny_qwen(folders["qwen2_5_vl"], hidden_size=128)
    save_tiny_qwen3(folders["qwen3_vl"], hidden_size=128)
    return {"demo": model_path(), **folders}


@dataclass(frozen=True)
class Engines:
    """The vLLM engine and the transformers engine on one checkpoint."""

    checkpoint: Path
    vllm: VllmEngine
    reference: TransformersEngine


@pytest_asyncio.fixture(
    scope="session", params=["demo", "llava_next", "llava_onevision", "internvl", "qwen2_5_vl", "qwen3_vl"]
)
async def engines(request, checkpoints):
    path = checkpoints[request.param]
    vllm = VllmEngine(VllmEngineConfig(str(path), vllm_args="--enforce-eager"))
    await vllm.start()
    reference = TransformersEngine(TransformersEngineConfig(str(path), threads=1))
    await reference.start()
    yield Engines(path, vllm, reference)
    await vllm.stop()
    await reference.stop()


@dataclass(frozen=True)
class Answer:
    chunks: list[GenerationChunk]

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def prompt(self) -> PromptReport:
        return self.chunks[0].prompt

    @property
    def logprobs(self) -> list[tuple[str, float]]:
        return [(entry.token, entry.logprob) for chunk in self.chunks for entry in chunk.logprobs]


@pytest.fixture(scope="session")
def answer():
    """answer(engine, request): all of the answer."""

    async def collect(engine, request) -> Answer:
        return Answer([chunk async for chunk in engine.generate(request)])

    return collect


@pytest.fixture(scope="session")
def ask():
    """ask(scene numbers, text, pruning={...}, size=None, **sampling): a greedy request."""

    def make(numbers, text, *, pruning=None, size=None, **sampling):
        parts = []
        for number in numbers:
            image = make_scene(SEED + number).image
            image = grained(image if size is None else image.resize(size), number)
            parts.append(ImagePart(image, hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()))
        params = SamplingParams(**{"temperature": 0.0, "max_tokens": 8} | sampling)
        message = Message("user", (*parts, text))
        return GenerationRequest("test", (message,), params, PruningPolicy(**pruning or {}))

    return make
