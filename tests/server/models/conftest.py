"""Tiny random-weight checkpoints, saved and loaded the way real ones are."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from tests.server.models.plain_generate import generate
from tests.server.models.tiny_llava import save_tiny_llava, save_tiny_llava_next
from tests.server.models.tiny_qwen import save_tiny_qwen


@pytest.fixture(scope="session")
def noise() -> Callable[..., Image.Image]:
    """A reproducible picture of random blocks: noise(width, height, seed)."""

    def make(width: int, height: int, seed: int = 0) -> Image.Image:
        blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        return Image.fromarray(blocks).resize((width, height), Image.Resampling.BILINEAR)

    return make


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llava")
    save_tiny_llava(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llava_next(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llava-next")
    save_tiny_llava_next(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-qwen")
    save_tiny_qwen(folder)
    return folder


@pytest.fixture(scope="session")
def plain_qwen(tiny_qwen: Path) -> Qwen2_5_VLForConditionalGeneration:
    """The same checkpoint as transformers alone loads it."""
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_qwen, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def qwen_tokenizer(tiny_qwen: Path) -> Qwen2Tokenizer:
    return AutoTokenizer.from_pretrained(tiny_qwen)


@pytest.fixture(scope="session")
def reference() -> Callable[..., SimpleNamespace]:
    """transformers' own greedy generate over a chat: reference(model, processor, messages, images, new_tokens)."""

    def run(model, processor, messages: list[dict], images: list[Image.Image], new_tokens: int) -> SimpleNamespace:
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = processor(images=images or None, text=text, return_tensors="pt")
        tokens, logits = generate(model, inputs, new_tokens)
        return SimpleNamespace(tokens=tokens, logits=logits, prompt=inputs["input_ids"].shape[1])

    return run
