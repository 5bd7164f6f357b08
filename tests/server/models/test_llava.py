import json
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from covervlm.server.demo import model_path
from covervlm.server.engines.base import ImagePart, InvalidRequest, Message, TextPart
from covervlm.server.models.base import Kept
from covervlm.server.models.llava import LlavaAdapter, padding_patches
from covervlm.server.models.registry import Checkpoint, load_adapter

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "text_and_padding.json").read_text())


@pytest.fixture(scope="module")
def adapter(tiny_llava) -> LlavaAdapter:
    return load_adapter(Checkpoint(tiny_llava))


@pytest.fixture(scope="module")
def plain(tiny_llava):
    """The same checkpoint as transformers alone loads it."""
    model = LlavaForConditionalGeneration.from_pretrained(tiny_llava, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(tiny_llava)


def chat(*parts) -> tuple[Message, ...]:
    return (Message("user", tuple(TextPart(p) if isinstance(p, str) else ImagePart(p, "") for p in parts)),)


def as_transformers(messages) -> list[dict]:
    return [
        {
            "role": m.role,
            "content": [
                {"type": "image"} if isinstance(p, ImagePart) else {"type": "text", "text": p.text} for p in m.content
            ],
        }
        for m in messages
    ]


@torch.inference_mode()
def greedy(adapter, embeddings, positions, steps: int):
    """Plain greedy decoding from embeddings, recomputing everything at each step."""
    tokens, logits = [], []
    for _ in range(steps):
        hidden = adapter.language_model(inputs_embeds=embeddings[None], position_ids=positions).last_hidden_state
        logits.append(adapter.lm_head(hidden[0, -1]))
        tokens.append(int(logits[-1].argmax()))
        if tokens[-1] in adapter.eos_ids:
            break
        embeddings = torch.cat([embeddings, adapter.embeddings(torch.tensor(tokens[-1:]))])
        positions = torch.cat([positions, positions[:, -1:] + 1], dim=1)
    return tokens, torch.stack(logits)


@pytest.mark.parametrize("case", GOLDEN["padding"], ids=lambda c: f"{c['width']}x{c['height']}")
def test_padding_patches_are_those_of_the_released_program(case):
    assert padding_patches(case["width"], case["height"], case["image_size"], case["patch"]) == case["excluded"]


@pytest.mark.parametrize("sizes", [[], [(32, 32)], [(90, 40), (25, 60)]], ids=["no image", "one image", "two images"])
def test_keeping_all_tokens_equals_transformers_generate(adapter, plain, reference, noise, sizes):
    images = [noise(w, h, seed=i) for i, (w, h) in enumerate(sizes)]
    messages = chat(*images, "Which color does the star have?")
    expected = reference(*plain, as_transformers(messages), images, 12)
    prompt = adapter.tokenize(messages)
    encoded = adapter.encode([adapter.preprocess(image) for image in images]) if images else []
    assembled = adapter.assemble(prompt, [Kept(image) for image in encoded])
    assert len(assembled) == expected.prompt == assembled.next_position
    tokens, logits = greedy(adapter, assembled.embeddings, assembled.positions, 12)
    assert tokens == expected.tokens
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=1e-4)


def test_pruned_prompt_equals_embeddings_built_by_hand(adapter, plain, noise):
    model, processor = plain
    image = noise(70, 50)
    keep = [0, 3, 7, 8, 15]
    text = processor.apply_chat_template(as_transformers(chat(image, "Where is it?")), add_generation_prompt=True)
    before, after = text.split("<image>")
    with torch.inference_mode():
        pixels = processor.image_processor(image, return_tensors="pt").pixel_values
        projected = model.get_image_features(pixels).pooler_output[0]
        embed = model.get_input_embeddings()
        ids = [processor.tokenizer(before).input_ids, processor.tokenizer(after, add_special_tokens=False).input_ids]
        by_hand = torch.cat([embed(torch.tensor(ids[0])), projected[keep], embed(torch.tensor(ids[1]))])
    encoded = adapter.encode([adapter.preprocess(image)])[0]
    pruned = adapter.assemble(adapter.tokenize(chat(image, "Where is it?")), [Kept(encoded, torch.tensor(keep))])
    torch.testing.assert_close(pruned.embeddings, by_hand)
    assert pruned.positions.tolist() == [list(range(len(by_hand)))]


def test_batched_encoding_equals_one_by_one(adapter, noise):
    inputs = [adapter.preprocess(noise(w, h, seed=w)) for w, h in [(32, 32), (100, 30), (20, 90)]]
    for batched, entry in zip(adapter.encode(inputs), inputs, strict=True):
        [single] = adapter.encode([entry])
        torch.testing.assert_close(batched.tokens, single.tokens, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(batched.regions[0].features, single.regions[0].features, atol=1e-5, rtol=1e-5)


def test_patches_wholly_in_padding_are_not_allowed(adapter, noise):
    [image] = adapter.encode([adapter.preprocess(noise(64, 32))])
    assert image.regions[0].allowed.view(4, 4).tolist() == [[False] * 4, [True] * 4, [True] * 4, [False] * 4]


def test_a_processor_that_crops_allows_every_patch(noise):
    demo = load_adapter(Checkpoint(model_path()))
    assert "allowed" not in demo.preprocess(noise(600, 300))


def test_cls_attention_is_the_towers_own(adapter, tiny_llava, noise):
    inputs = [adapter.preprocess(noise(32, 32, seed=i)) for i in range(2)]
    eager = LlavaForConditionalGeneration.from_pretrained(
        tiny_llava, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        pixels = torch.stack([entry["pixel_values"] for entry in inputs])
        attentions = eager.model.vision_tower(pixels, output_attentions=True).attentions
    for i, image in enumerate(adapter.encode(inputs, cls_attention=True)):
        torch.testing.assert_close(
            image.regions[0].cls_attention, attentions[-2][i].mean(0)[0, 1:], atol=1e-6, rtol=1e-4
        )
    assert adapter.encode(inputs)[0].regions[0].cls_attention is None


def test_question_words_are_embedded_as_they_stand_in_a_sentence():
    demo = load_adapter(Checkpoint(model_path()))
    ids = demo.tokenizer(" color of star", add_special_tokens=False).input_ids
    words = demo.question_embeddings("What is the color of the star?")
    torch.testing.assert_close(words, demo.embeddings(torch.tensor(ids)))


def test_an_empty_question_has_no_words(adapter):
    assert adapter.question_embeddings("").shape[0] == 0


def test_the_placeholder_in_a_users_text_is_refused_with_advice(adapter, noise):
    with pytest.raises(InvalidRequest, match="image_url"):
        adapter.tokenize(chat(noise(32, 32), "what is <image> for?"))


def test_an_unknown_architecture_names_the_supported_ones(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(ValueError, match=r"LlamaForCausalLM.*supported are LlavaForConditionalGeneration"):
        load_adapter(Checkpoint(tmp_path))


def test_weights_that_are_not_safetensors_are_refused(tiny_llava, tmp_path):
    for file in tiny_llava.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_adapter(Checkpoint(tmp_path))
