"""Qwen3-VL's deeper features belong to its tokens and go with them."""

from dataclasses import replace

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import Message, VideoPart
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from tests.server.models.tiny_qwen import TEMPLATE, chat
from tests.server.models.tiny_qwen3 import image_processor, inputs_of, save_tiny_qwen3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3")
    save_tiny_qwen3(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(folder):
    return load_adapter(Checkpoint(folder))


@pytest.fixture(scope="module")
def plain(folder):
    return Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def encoded(adapter, noise):
    return adapter.encode([adapter.preprocess(noise(224, 160))])[0]


def test_each_token_has_the_features_of_its_four_patches_and_what_deeper_layers_add(adapter, plain, noise, encoded):
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


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("fps", [0.3, 1.0, 2.0, 24.0])
def test_every_moment_is_told_after_its_time_and_has_the_positions_of_an_image(adapter, plain, noise, fps, count):
    frames = [noise(96, 64, seed=i) for i in range(count)]
    inputs = inputs_of(plain, adapter.tokenizer, ("Look:", frames, "What happens?"), fps)
    ids = adapter.tokenize((Message("user", ("Look:", VideoPart(tuple(frames), "", fps), "What happens?")),))
    [encoded] = adapter.encode([adapter.preprocess_video(frames, fps)])
    moments = -(-count // 2)
    assert len(adapter.chat.slots(ids)) == encoded.layout.slots == len(encoded.layout.parts) == moments
    assert adapter.expanded(ids, encoded.layout.counts()) == inputs["input_ids"][0].tolist()
    expected, _ = plain.model.get_rope_index(**{k: v for k, v in inputs.items() if not k.startswith("pixel")})
    _, positions = adapter.assemble(ids, [encoded])
    assert positions[:, :-1].tolist() == expected[:, 0].tolist()


def test_kept_tokens_stay_with_the_moment_that_they_show(adapter, noise):
    frames = [noise(96, 64, seed=i) for i in range(5)]
    ids = adapter.tokenize(chat(frames, "What happens?"))
    [encoded] = adapter.encode([adapter.preprocess_video(frames, 2.0)])
    kept = torch.tensor([0, 5, 7, 12, 13, 17])  # six to a moment
    assert encoded.layout.counts(kept) == [2, 1, 3]
    embeddings, _ = adapter.assemble(ids, [encoded], [kept])
    slots, read = adapter.chat.slots(ids), encoded.at(kept)
    for moment, own in enumerate(read.split([2, 1, 3])):
        first = slots[moment] + sum((2, 1, 3)[:moment]) - moment
        assert torch.equal(embeddings[first : first + len(own)], own)
    assert len(embeddings) == len(ids) - 3 + 6


def test_a_template_without_clips_says_so(folder, noise):
    adapter = load_adapter(Checkpoint(folder))
    adapter.chat.processor.chat_template = TEMPLATE.replace("part.type == 'video'", "false")
    with pytest.raises(InvalidRequest, match="not videos"):
        adapter.tokenize(chat([noise(56, 56)], "What happens?"))
    adapter.chat.processor.chat_template = TEMPLATE.replace("<|video_pad|>", "<|image_pad|>")
    with pytest.raises(InvalidRequest, match="not videos"):
        adapter.tokenize(chat([noise(56, 56)], "What happens?"))
