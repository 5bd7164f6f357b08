"""What `prepare` makes is read by transformers' own `generate`, which answers as the model here does."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

import covervlm
from covervlm.server.core.errors import InvalidRequest
from tests.server.models import tiny_internvl, tiny_onevision, tiny_qwen
from tests.server.models.plain_generate import generate
from tests.server.models.tiny_internvl import save_tiny_internvl
from tests.server.models.tiny_llava import save_tiny_llava, save_tiny_llava_next
from tests.server.models.tiny_onevision import save_tiny_onevision
from tests.server.models.tiny_qwen import save_tiny_qwen
from tests.server.models.tiny_qwen3 import save_tiny_qwen3

SAVED = {
    "llava": save_tiny_llava,
    "llava_next": save_tiny_llava_next,
    "llava_onevision": save_tiny_onevision,
    "internvl": save_tiny_internvl,
    "qwen2_5_vl": save_tiny_qwen,
    "qwen3_vl": save_tiny_qwen3,
}
QUESTION = "Which color does the star have?"
STEPS = 12


def noise(width, height, seed=0):
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BILINEAR)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """loaded(name): the folder of a tiny checkpoint, and its model in this process."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            SAVED[name](folder)
            made[name] = (folder, covervlm.load(folder, threads=1))
        return made[name]

    yield get
    for _, model in made.values():
        model.close()


def user(*parts):
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in parts
    ]
    return [{"role": "user", "content": content}]


def generated(model, prepared):
    return model.model.generate(**prepared, max_new_tokens=STEPS, do_sample=False, pad_token_id=0)[0].tolist()


CONVERSATIONS = {
    "one image": user(noise(140, 84), QUESTION),
    "two images": user(noise(140, 84), "Which of both is larger?", noise(60, 90, seed=1)),
    "a second turn": [
        *user(noise(140, 84), QUESTION),
        {"role": "assistant", "content": "Red."},
        *user("And the circle?"),
    ],
    "no image": user(QUESTION),
}
BUDGETS = {
    "whole": {},
    "mmtok": {"keep_tokens": 5},
    "a share": {"keep_ratio": 0.3, "method": "divprune"},
    "coverage": {"coverage": 0.9, "method": "vision_coverage"},
}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", ["llava", "llava_next", "llava_onevision", "internvl", "qwen2_5_vl"])
def test_greedy_generate_writes_the_tokens_of_ask(loaded, name, budget):
    _, model = loaded(name)
    for messages in CONVERSATIONS.values():
        asked = model.ask_messages(messages, max_tokens=STEPS, return_token_ids=True, **BUDGETS[budget])
        prepared = model.prepare(messages, **BUDGETS[budget])
        assert prepared["inputs_embeds"].shape[1] == asked.usage.prompt_tokens
        assert generated(model, prepared) == asked.raw["choices"][0]["token_ids"]


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_an_unpruned_prompt_is_generated_from_as_from_pixels(loaded, name):
    folder, model = loaded(name)
    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    image = noise(140, 84)
    text = processor.apply_chat_template(user(image, QUESTION), add_generation_prompt=True)
    expected, _ = generate(plain, processor(images=[image], text=text, return_tensors="pt"), STEPS)
    assert generated(model, model.prepare(user(image, QUESTION))) == expected


@pytest.mark.parametrize(
    ("name", "kit"), [("qwen2_5_vl", tiny_qwen), ("llava_onevision", tiny_onevision), ("internvl", tiny_internvl)]
)
def test_so_it_is_where_transformers_own_processor_needs_torchvision(loaded, name, kit):
    folder, model = loaded(name)
    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, parts = AutoTokenizer.from_pretrained(folder), (noise(140, 84), QUESTION)
    if kit is tiny_qwen:
        inputs = tiny_qwen.transformers_inputs(tokenizer, parts)
    else:
        inputs = kit.inputs_of(plain, tokenizer, parts)
    expected, _ = generate(plain, inputs, STEPS)
    assert generated(model, model.prepare(user(*parts))) == expected


def test_pruned_places_reach_generate(loaded):
    """Positions are those of the whole prompt: what the question's words stand at does not move."""
    _, model = loaded("qwen2_5_vl")
    whole, pruned = model.prepare(CONVERSATIONS["one image"]), model.prepare(CONVERSATIONS["one image"], keep_tokens=3)
    assert whole["position_ids"].shape == (3, 1, whole["inputs_embeds"].shape[1])
    assert pruned["position_ids"].shape == (3, 1, pruned["inputs_embeds"].shape[1])
    assert torch.equal(whole["position_ids"][..., -8:], pruned["position_ids"][..., -8:])


def test_what_is_prepared_takes_gradients(loaded):
    _, model = loaded("llava")
    prepared = model.prepare(CONVERSATIONS["one image"], keep_tokens=5)
    embeddings = prepared["inputs_embeds"].requires_grad_()
    model.model(inputs_embeds=embeddings, attention_mask=prepared["attention_mask"]).logits[0, -1].max().backward()
    assert embeddings.grad.abs().sum() > 0


def test_a_model_whose_generate_takes_no_pruned_images_says_so(loaded):
    _, model = loaded("qwen3_vl")
    with pytest.raises(InvalidRequest, match="takes from pixels alone"):
        model.prepare(CONVERSATIONS["one image"], keep_tokens=3)
    assert model.ask_messages(CONVERSATIONS["one image"], keep_tokens=3, max_tokens=2).images[0].kept == 3
