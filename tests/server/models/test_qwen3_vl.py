"""Qwen3-VL's deeper features belong to its tokens and go with them."""

from dataclasses import replace

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from tests.server.models.tiny_qwen import chat
from tests.server.models.tiny_qwen3 import image_processor, save_tiny_qwen3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3")
    save_tiny_qwen3(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(folder):
    return load_adapter(Checkpoint(folder))


@pytest.fixture(scope="module")
def encoded(adapter, noise):
    return adapter.encode([adapter.preprocess(noise(224, 160))])[0]


def test_each_token_has_the_features_of_its_four_patches_and_what_deeper_layers_add(adapter, folder, noise, encoded):
    plain = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = image_processor()(noise(224, 160), return_tensors="pt")
    with torch.inference_mode():
        seen = plain.model.visual(inputs.pixel_values, grid_thw=inputs.image_grid_thw)
    assert encoded.layout.grid == (5, 7)
    torch.testing.assert_close(encoded.tokens, seen.pooler_output, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoded.deeper, torch.cat(seen.deepstack_features, dim=1), atol=1e-5, rtol=1e-5)
    for token in range(35):
        mean = seen.last_hidden_state[4 * token : 4 * token + 4].mean(0)
        torch.testing.assert_close(encoded.features[token], mean, atol=1e-5, rtol=1e-5)


def test_deeper_features_are_counted_checked_and_moved_with_the_tokens(encoded):
    kept = encoded.at(torch.tensor([3, 30]))
    assert torch.equal(kept, torch.cat([encoded.tokens, encoded.deeper], dim=1)[[3, 30]])
    assert encoded.nbytes == 4 * (encoded.tokens.numel() + encoded.features.numel() + encoded.deeper.numel())
    assert torch.equal(encoded.to("cpu").deeper, encoded.deeper)
    assert encoded.intact
    assert not replace(encoded, deeper=encoded.deeper * torch.nan).intact


def test_the_language_model_reads_what_deeper_layers_add(adapter, noise, encoded):
    ids = adapter.tokenize(chat(noise(224, 160), "What is it?"))
    embeddings, positions = adapter.assemble(ids, [encoded])
    with torch.inference_mode():
        read, without = (
            adapter.language_model(inputs_embeds=one[None], position_ids=positions[:, None, :-1]).last_hidden_state
            for one in (embeddings, embeddings[:, :64])
        )
    assert not torch.allclose(read, without, atol=1e-2)


def test_clips_are_refused(adapter, noise):
    with pytest.raises(InvalidRequest, match="not videos"):
        adapter.tokenize(chat([noise(56, 56)], "What happens?"))
    with pytest.raises(InvalidRequest, match="not videos"):
        adapter.preprocess_video([noise(56, 56)], 2.0)
