"""Both engines on the same checkpoints, under the real vLLM."""

import hashlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from demo_model.scenes import make_scene
from transformers import LlamaConfig, Qwen2_5_VLConfig

from covervlm.server.engines.base import (
    GenerationRequest,
    ImagePart,
    Message,
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


_next, _qwen = _module("test_llava_next"), _module("test_qwen2_5_vl")
_next.LlamaConfig, _qwen.Qwen2_5_VLConfig = _wider_llama, _wider_qwen
tiny_llava_next, tiny_qwen = _next.checkpoint, _qwen.checkpoint


@pytest.fixture(scope="session")
def ask():
    """ask(scene numbers, text, pruning={...}, size=None, **sampling): a greedy request."""

    def make(numbers, text, *, pruning=None, size=None, **sampling):
        parts = []
        for number in numbers:
            image = make_scene(60_000_000 + number).image
            image = image if size is None else image.resize(size)
            parts.append(ImagePart(image, hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()))
        params = SamplingParams(**{"temperature": 0.0, "max_tokens": 8} | sampling)
        message = Message("user", (*parts, TextPart(text)))
        return GenerationRequest("test", (message,), params, PruningPolicy(**pruning or {}))

    return make
