"""What a pass leaves out of the last layer changes nothing that is read."""

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    DynamicCache,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from covervlm.server.models.last_layer import picking, read_at, unread

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.4,
}
DECODERS = [
    (LlamaModel, LlamaConfig),
    (MistralModel, MistralConfig),
    (Qwen2Model, Qwen2Config),
    (Qwen3Model, Qwen3Config),
]
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28}
TOWERS = [(CLIPVisionModel, CLIPVisionConfig), (SiglipVisionModel, SiglipVisionConfig)]


def rows_computed(part: torch.nn.Module) -> list[int]:
    """A list that grows by the rows of each product."""
    seen: list[int] = []
    part.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:-1].numel()))
    return seen


@torch.inference_mode()
def passed(model, embeddings):
    cache = DynamicCache()
    hidden = model(inputs_embeds=embeddings, past_key_values=cache, use_cache=True).last_hidden_state
    return hidden, [side for layer in cache.layers for side in (layer.keys, layer.values)]


@pytest.mark.parametrize(("kind", "config"), DECODERS, ids=lambda one: one.__name__)
def test_what_is_read_of_a_prompt_is_as_if_all_were_computed(kind, config):
    torch.manual_seed(0)
    model = kind(config(**SHAPE)).eval()
    embeddings = torch.randn(3, 11, 32)
    rows, places = torch.tensor([0, 1, 2]), torch.tensor([10, 4, 7])
    expected, expected_kept = passed(model, embeddings)
    last, before = model.layers[-1], model.layers[-2]
    products = [rows_computed(part) for part in (last.mlp.down_proj, last.mlp.up_proj, before.mlp.down_proj)]
    with read_at(model, rows, places):
        hidden, kept = passed(model, embeddings)
    assert products == [[3], [3], [33]]
    torch.testing.assert_close(hidden[rows, places], expected[rows, places])
    for one, other in zip(kept, expected_kept, strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(passed(model, embeddings)[0], expected)


def test_a_decoder_of_other_parts_computes_everything():
    with read_at(torch.nn.Linear(2, 2), torch.tensor([0]), torch.tensor([0])):
        pass


def test_a_pass_that_fails_leaves_the_model_as_it_was():
    model = LlamaModel(LlamaConfig(**SHAPE)).eval()
    embeddings = torch.randn(1, 5, 32)
    expected, _ = passed(model, embeddings)
    with pytest.raises(RuntimeError), read_at(model, torch.tensor([0]), torch.tensor([4])):
        passed(model, embeddings[..., :7])
    assert torch.equal(passed(model, embeddings)[0], expected)


@pytest.mark.parametrize(("kind", "config"), TOWERS, ids=lambda one: one.__name__)
@torch.inference_mode()
def test_a_towers_layers_before_an_unread_one_are_as_they_were(kind, config):
    torch.manual_seed(0)
    tower = kind(config(**TOWER, patch_size=14)).eval()
    pixels = torch.randn(2, 3, 28, 28)
    expected = tower(pixels, output_hidden_states=True).hidden_states
    last = tower.encoder.layers[-1]
    products = rows_computed(last.mlp.fc1), rows_computed(last.self_attn.q_proj)
    with unread(last):
        found = tower(pixels, output_hidden_states=True).hidden_states
    assert products == ([], [])
    assert len(found) == len(expected)
    for one, other in zip(found[:-1], expected[:-1], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(tower(pixels, output_hidden_states=True).hidden_states[-1], expected[-1])


@pytest.mark.parametrize("usual", [True, False])
@pytest.mark.parametrize(("kind", "config"), DECODERS, ids=lambda one: one.__name__)
def test_rows_that_are_picked_are_those_of_the_whole_pass(kind, config, usual):
    """Of a last layer with a part more, all are computed; the parts of the others are not touched."""
    torch.manual_seed(0)
    model = kind(config(**SHAPE)).eval()
    embeddings, rows = torch.randn(4, 5, 32), torch.tensor([2, 0])
    expected, kept = passed(model, embeddings)
    if not usual:
        model.layers[-1].more = torch.nn.Identity()
    seen = rows_computed(model.layers[-1].mlp)
    with picking(model, rows) as picked:
        hidden, keys_values = passed(model, embeddings)
    torch.testing.assert_close(picked(hidden), expected[rows])
    for got, side in zip(keys_values, kept, strict=True):
        torch.testing.assert_close(got, side)
    assert seen == [10 if usual else 20]
    torch.testing.assert_close(passed(model, embeddings)[0], expected)
