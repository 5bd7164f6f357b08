"""The random checkpoint of the speed benchmarks, at a fraction of its size."""

import pytest
import torch
from PIL import Image
from speed import random_llava
from transformers import AutoProcessor, LlavaForConditionalGeneration

from covervlm.server.demo import example_scenes


@pytest.fixture
def small(monkeypatch):
    full = random_llava.configuration

    def configuration(*arguments):
        config = full(*arguments)
        for part, heads in ((config.vision_config, 2), (config.text_config, 2)):
            part.hidden_size, part.intermediate_size, part.num_hidden_layers = 64, 96, 2
            part.num_attention_heads = heads
        config.text_config.num_key_value_heads, config.text_config.head_dim = 2, 32
        return config

    monkeypatch.setattr(random_llava, "configuration", configuration)


def test_the_same_seed_writes_the_same_weights_and_another_seed_others(small, tmp_path):
    weights = [
        (random_llava.save_random_llava(tmp_path / name, seed) / "model.safetensors").read_bytes()
        for name, seed in [("first", 0), ("again", 0), ("other", 1)]
    ]
    assert weights[0] == weights[1] != weights[2]


def test_a_greedy_answer_has_full_length_and_no_special_tokens(small, tmp_path):
    folder = random_llava.save_random_llava(tmp_path)
    model, processor = (
        LlavaForConditionalGeneration.from_pretrained(folder).float(),
        AutoProcessor.from_pretrained(folder),
    )
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What color is the star?"}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(images=Image.open(example_scenes()[0].path).convert("RGB"), text=prompt, return_tensors="pt")
    with torch.inference_mode():
        answer = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs.input_ids.shape[1] :]
    assert inputs.input_ids.shape[1] > 576
    assert len(answer) == 40
    assert not set(answer.tolist()) & set(processor.tokenizer.all_special_ids)


def test_the_full_size_is_the_stated_one():
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(random_llava.configuration(448, 4))

    def millions(module):
        return round(sum(weight.numel() for weight in module.parameters()) / 1e6)

    assert f"{millions(model.model.vision_tower)} M parameters, 576 tokens" in random_llava.SHAPE
    assert f"{millions(model.model.language_model.layers)} M parameters without" in random_llava.SHAPE
