"""Real vLLM, started once for every checkpoint, with the transformers engine beside it as the reference."""

import hashlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import pytest_asyncio
from chat_bodies import SEED
from demo_model.scenes import make_scene
from transformers import LlamaConfig, Qwen2_5_VLConfig

from covervlm.server.demo import model_path
from covervlm.server.engines.base import (
    GenerationChunk,
    GenerationRequest,
    ImagePart,
    Message,
    PromptReport,
    PruningPolicy,
    SamplingParams,
    TextPart,
)

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
HERE = Path(__file__).parent
CURE = str(HERE / "torchvision_cure")
os.environ["PYTHONPATH"] = CURE
sys.path.insert(0, CURE)
importlib.import_module("sitecustomize") if "sitecustomize" not in sys.modules else None

from covervlm.server.engines.transformers import TransformersEngine, TransformersEngineConfig  # noqa: E402
from covervlm.server.engines.vllm import VllmEngine, VllmEngineConfig  # noqa: E402


def _module(name: str) -> ModuleType:
    """A test module of the adapters, whose random checkpoint serves here too."""
    path = HERE.parent / "server" / "models" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"covervlm_tests_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _wider_llama(**options):
    """vLLM's attention on a CPU has no heads narrower than 32."""
    return LlamaConfig(**options | {"hidden_size": 128})


def _wider_qwen(*, text_config, vision_config, **options):
    rope = text_config["rope_parameters"] | {"mrope_section": [4, 6, 6]}
    text = text_config | {"hidden_size": 128, "rope_parameters": rope}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision_config | {"out_hidden_size": 128}, **options)


def _folder(name: str, tmp_path_factory) -> Path:
    """The demo, or a checkpoint of random weights as the adapters' tests make it, with heads that vLLM can serve."""
    if name == "demo":
        return model_path()
    module = _module(f"test_{name}")
    module.LlamaConfig, module.Qwen2_5_VLConfig = _wider_llama, _wider_qwen
    return module.checkpoint._get_wrapped_function()(tmp_path_factory)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """One folder for every architecture."""
    return {name: _folder(name, tmp_path_factory) for name in ("demo", "llava_next", "qwen2_5_vl")}


@dataclass(frozen=True)
class Engines:
    """The vLLM engine and the transformers engine on one checkpoint."""

    checkpoint: Path
    vllm: VllmEngine
    reference: TransformersEngine


@pytest_asyncio.fixture(scope="session", params=["demo", "llava_next", "qwen2_5_vl"])
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
            image = image if size is None else image.resize(size)
            parts.append(ImagePart(image, hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()))
        params = SamplingParams(**{"temperature": 0.0, "max_tokens": 8} | sampling)
        message = Message("user", (*parts, TextPart(text)))
        return GenerationRequest("test", (message,), params, PruningPolicy(**pruning or {}))

    return make
