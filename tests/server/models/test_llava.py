import json
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import Function, ImagePart, Message, ToolCall, ToolUse
from covervlm.server.demo import model_path
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from covervlm.server.models.llava import LlavaAdapter, padding_patches
from covervlm.server.models.template import ChatTemplate

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
    return (Message("user", tuple(p if isinstance(p, str) else ImagePart(p, "") for p in parts)),)


def as_transformers(messages) -> list[dict]:
    return [
        {
            "role": m.role,
            "content": [
                {"type": "image"} if isinstance(p, ImagePart) else {"type": "text", "text": p} for p in m.content
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
    embeddings, positions = adapter.assemble(prompt, encoded)
    assert len(embeddings) == expected.prompt == positions[0, -1]
    tokens, logits = greedy(adapter, embeddings, positions[:, :-1], 12)
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
    ids = adapter.tokenize(chat(image, "Where is it?"))
    embeddings, positions = adapter.assemble(ids, [encoded], [torch.tensor(keep)])
    torch.testing.assert_close(embeddings, by_hand)
    assert positions.tolist() == [list(range(len(by_hand) + 1))]


def test_batched_encoding_equals_one_by_one(adapter, noise):
    inputs = [adapter.preprocess(noise(w, h, seed=w)) for w, h in [(32, 32), (100, 30), (20, 90)]]
    for batched, entry in zip(adapter.encode(inputs), inputs, strict=True):
        [single] = adapter.encode([entry])
        torch.testing.assert_close(batched.tokens, single.tokens, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(batched.features, single.features, atol=1e-5, rtol=1e-5)


def test_patches_wholly_in_padding_are_not_allowed(adapter, noise):
    [image] = adapter.encode([adapter.preprocess(noise(64, 32))])
    assert image.layout.parts[0].allowed.view(4, 4).tolist() == [[False] * 4, [True] * 4, [True] * 4, [False] * 4]


def test_a_processor_that_crops_allows_every_patch(noise):
    demo = load_adapter(Checkpoint(model_path()))
    [image] = demo.encode([demo.preprocess(noise(600, 300))])
    assert image.layout.parts[0].allowed is None


def test_cls_attention_is_the_towers_own(adapter, tiny_llava, noise):
    inputs = [adapter.preprocess(noise(32, 32, seed=i)) for i in range(2)]
    eager = LlavaForConditionalGeneration.from_pretrained(
        tiny_llava, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        pixels = torch.stack([entry["pixel_values"] for entry in inputs])
        attentions = eager.model.vision_tower(pixels, output_attentions=True).attentions
    for i, image in enumerate(adapter.encode(inputs, cls_attention=True)):
        torch.testing.assert_close(image.cls_attention, attentions[-2][i].mean(0)[0, 1:], atol=1e-6, rtol=1e-4)
    assert adapter.encode(inputs)[0].cls_attention is None


def test_question_words_are_embedded_as_they_stand_in_a_sentence():
    demo = load_adapter(Checkpoint(model_path()))
    ids = demo.tokenizer(" color of star", add_special_tokens=False).input_ids
    words = demo.question_embeddings("What is the color of the star?")
    torch.testing.assert_close(words, demo.embeddings(torch.tensor(ids)))


def test_an_empty_question_has_no_words(adapter):
    assert adapter.question_embeddings("").shape[0] == 0


def test_the_placeholder_in_a_text_is_text(adapter, noise):
    ids = adapter.tokenize(chat(noise(32, 32), "what is <image> for?"))
    assert len(adapter.chat.slots(ids)) == 1
    assert "what is < image> for?" in adapter.tokenizer.decode(ids)


def test_texts_that_join_up_to_a_placeholder_are_refused(adapter, noise, monkeypatch):
    monkeypatch.setattr(
        type(adapter.chat), "_render", lambda self, messages, *told: f"<image>{messages[0].text}".replace("\n", "")
    )
    with pytest.raises(InvalidRequest, match="texts may not combine into one"):
        adapter.tokenize(chat(noise(32, 32), "<im", "age>"))


TURNS = (
    Message("user", ("What is at the top?",)),
    Message("assistant", ("Well.",), (ToolCall("c1", "look", '{"at": "top"}'),)),
    Message("tool", ('A "star"',), tool_call_id="c1"),
    Message("user", ("And below?",)),
)
LOOK = Function("look", "Looks at a place.", {"type": "object", "properties": {"at": {"type": "string"}}})


def test_calls_results_and_functions_are_told_in_words_where_the_template_has_no_place_for_them(adapter):
    assert adapter.chat.template == ChatTemplate(system=True)
    text = adapter.tokenizer.decode(adapter.chat.tokenize(TURNS, tools=ToolUse((LOOK,), format="hermes")))
    assert text.count("user:") == 2
    told = [
        "SYSTEM: # Tools",
        '"description": "Looks at a place."',
        "USER: What is at the top?",
        'ASSISTANT: Well.\n<tool_call>\n{"name": "look", "arguments": {"at": "top"}}\n</tool_call>',
        'USER: <tool_response>\nA "star"\n</tool_response>',
        "And below?",
    ]
    places = [text.find(words.lower()) for words in told]  # as this tokenizer spells them
    assert -1 not in places, text
    assert places == sorted(places)


def test_placeholders_in_calls_results_and_functions_are_text(adapter):
    turns = (
        Message("user", ("Look.",)),
        Message("assistant", ("",), (ToolCall("c1", "look", '{"at": "<image>"}'),)),
        Message("tool", ("<image>",), tool_call_id="c1"),
    )
    ids = adapter.chat.tokenize(turns, tools=ToolUse((Function("look", "At an <image>."),)))
    assert adapter.chat.slots(ids) == []


@pytest.mark.parametrize("text", ["star ", "a", "漢字", " \n"])
def test_a_text_far_beyond_the_context_is_refused_before_it_is_tokenised_whole(adapter, monkeypatch, text):
    lengths = []
    tokenizer = type(adapter.tokenizer)
    plain = tokenizer.__call__
    monkeypatch.setattr(
        tokenizer, "__call__", lambda self, text, **options: lengths.append(len(text)) or plain(self, text, **options)
    )
    for times in (3 * adapter.context_length, 10**6):
        with pytest.raises(InvalidRequest, match="far longer") as caught:
            adapter.tokenize(chat(text * times))
        assert (caught.value.param, caught.value.code) == ("messages", "context_length_exceeded")
    assert sum(lengths) <= 16 * adapter.context_length + 2**14


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
