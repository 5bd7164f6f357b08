"""Packed weights: what the model computes stays the same, and no matrix is kept twice."""

import gc
import weakref

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from covervlm.server.demo import model_path
from covervlm.server.engines.embedded import packed_weights
from covervlm.server.engines.embedded.packed_weights import PackedLinear, pack
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from tests.server.models.tiny_internvl import save_tiny_internvl
from tests.server.models.tiny_llava import save_tiny_llava
from tests.server.models.tiny_qwen import save_tiny_qwen
from tests.server.models.tiny_qwen3 import save_tiny_qwen3

CHECKPOINTS = {
    "llava": save_tiny_llava,
    "internvl": save_tiny_internvl,
    "qwen2_5_vl": save_tiny_qwen,
    "qwen3_vl": save_tiny_qwen3,
}


@pytest.fixture(params=CHECKPOINTS)
def checkpoint(request, tmp_path):
    CHECKPOINTS[request.param](tmp_path)
    return tmp_path


@pytest.fixture
def any_size(monkeypatch):
    """Tiny models are packed too."""
    monkeypatch.setattr(packed_weights, "_SMALLEST", 1)


def linear_layers(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("rows", [(1, 1), (3, 1), (1, 40), (2, 7)])
@torch.inference_mode()
def test_a_packed_language_model_computes_what_transformers_computes(any_size, checkpoint, rows):
    plain = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    adapter = load_adapter(Checkpoint(checkpoint))
    assert pack(adapter) > 0
    assert not linear_layers(adapter.language_model)
    ids = torch.randint(0, 100, rows, generator=torch.Generator().manual_seed(0))
    hidden = plain.model.language_model(input_ids=ids).last_hidden_state
    core = adapter.model.model.language_model
    torch.testing.assert_close(core(input_ids=ids).last_hidden_state, hidden, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(adapter.lm_head(hidden), plain.lm_head(hidden), atol=1e-5, rtol=1e-5)


def test_the_weights_that_were_packed_are_let_go(any_size):
    adapter = load_adapter(Checkpoint(model_path()))
    before = [weakref.ref(layer.weight) for layer in linear_layers(adapter.language_model)]
    assert pack(adapter) == len(before) + 1  # the output matrix too
    gc.collect()
    assert not any(weight() is not None for weight in before)


def test_matrices_that_stay_in_a_cache_are_not_packed():
    assert pack(load_adapter(Checkpoint(model_path()))) == 0


def test_tied_embeddings_stay_as_they_are(any_size):
    adapter = load_adapter(Checkpoint(model_path()))
    adapter.lm_head.weight = adapter.embeddings.weight
    pack(adapter)
    assert not isinstance(adapter.lm_head, PackedLinear)
    assert adapter.vocabulary_size == len(adapter.embeddings.weight)


def test_half_precision_is_not_packed(any_size):
    assert pack(load_adapter(Checkpoint(model_path(), dtype="bfloat16"))) == 0
