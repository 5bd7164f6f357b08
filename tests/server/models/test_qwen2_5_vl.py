import json

import pytest
import torch

from covervlm.pruners import get_pruner
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from covervlm.server.models.qwen2_5_vl import Qwen2_5_VLAdapter
from covervlm.server.selection.selector import parts_to_prune
from tests.server.models.plain_generate import generate
from tests.server.models.tiny_qwen import (
    IMAGE,
    PROMPTS,
    QUESTION,
    TEMPLATE,
    VIDEO,
    chat,
    clip,
    still,
    transformers_inputs,
)


@pytest.fixture(scope="module")
def adapter(tiny_qwen) -> Qwen2_5_VLAdapter:
    adapter = load_adapter(Checkpoint(tiny_qwen))
    assert isinstance(adapter, Qwen2_5_VLAdapter)
    return adapter


def test_a_checkpoint_saved_by_transformers_5_loads_the_same(tiny_qwen, adapter, noise, tmp_path):
    """One processor_config.json for all processors and the template in its own file."""
    for file in tiny_qwen.iterdir():
        if file.name not in ("preprocessor_config.json", "chat_template.json"):
            (tmp_path / file.name).symlink_to(file)
    saved = json.loads((tiny_qwen / "preprocessor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"image_processor": saved, "processor_class": "Qwen2_5_VLProcessor"})
    )
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    other, image = load_adapter(Checkpoint(tmp_path)), noise(400, 300)
    assert other.tokenize(chat(image, QUESTION)) == adapter.tokenize(chat(image, QUESTION))
    assert torch.equal(other.preprocess(image)["pixel_values"], adapter.preprocess(image)["pixel_values"])


@torch.inference_mode()
def greedy(adapter, prompt, steps):
    """Plain greedy decoding from an assembled prompt, recomputing everything at each step."""
    (embeddings, positions), tokens, logits = prompt, [], []
    positions, next_position = positions[:, :-1], int(positions[0, -1])
    for step in range(steps):
        hidden = adapter.language_model(inputs_embeds=embeddings[None], position_ids=positions[:, None])
        logits.append(adapter.lm_head(hidden.last_hidden_state[0, -1]))
        tokens.append(int(logits[-1].argmax()))
        if tokens[-1] in adapter.eos_ids:
            break
        embeddings = torch.cat([embeddings, adapter.embeddings(torch.tensor(tokens[-1:]))])
        positions = torch.cat([positions, torch.full((3, 1), next_position + step)], dim=1)
    return tokens, torch.stack(logits)


def encode(adapter, parts, fps=2.0):
    inputs = [
        adapter.preprocess_video(part, fps) if isinstance(part, list) else adapter.preprocess(part)
        for part in parts
        if not isinstance(part, str)
    ]
    return adapter.encode(inputs) if inputs else []


@pytest.mark.parametrize("case", PROMPTS)
def test_keeping_all_tokens_equals_transformers_generate(adapter, plain_qwen, qwen_tokenizer, noise, case):
    parts = PROMPTS[case](noise)
    inputs = transformers_inputs(qwen_tokenizer, parts)
    expected, expected_logits = generate(plain_qwen, inputs, 12)
    prompt = adapter.assemble(adapter.tokenize(chat(*parts)), encode(adapter, parts))
    assert len(prompt[0]) == inputs["input_ids"].shape[1]
    tokens, logits = greedy(adapter, prompt, 12)
    assert tokens == expected
    torch.testing.assert_close(logits, expected_logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fps", [0.5, 1.0, 4.0])
def test_the_time_between_frames_reaches_the_positions(adapter, plain_qwen, qwen_tokenizer, noise, fps):
    parts = PROMPTS["clip"](noise)
    inputs = transformers_inputs(qwen_tokenizer, parts, fps)
    expected, _ = plain_qwen.model.get_rope_index(**{k: v for k, v in inputs.items() if not k.startswith("pixel")})
    _, positions = adapter.assemble(adapter.tokenize(chat(*parts)), encode(adapter, parts, fps))
    assert positions[:, :-1].tolist() == expected[:, 0].tolist()


def test_features_are_the_last_blocks_output_averaged_in_the_order_of_the_merged_tokens(adapter, plain_qwen, noise):
    """Each merge group's four rows, found in the windows' order by hand, averaged; and merged they give the token."""
    image = noise(196, 140)  # 7 x 5 merge groups, which windows of 2 x 2 do not divide
    pixels, grid = still(image)
    with torch.inference_mode():
        rows = plain_qwen.model.visual(pixels, grid_thw=grid).last_hidden_state.view(-1, 4, 32)
        merged = plain_qwen.model.visual.merger(rows.reshape(-1, 32))
    height, width = grid[0, 1] // 2, grid[0, 2] // 2
    in_windows = [
        (row, column)
        for top in range(0, height, 2)
        for left in range(0, width, 2)
        for row in range(top, min(top + 2, height))
        for column in range(left, min(left + 2, width))
    ]
    [encoded] = encode(adapter, [image])
    [part] = encoded.layout.parts
    assert part.grid == encoded.layout.grid == (height, width) == (5, 7)
    assert part.positions.tolist() == list(range(35))
    for place, (row, column) in enumerate(in_windows):
        raster = row * int(width) + column
        torch.testing.assert_close(encoded.features[raster], rows[place].mean(dim=0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(encoded.tokens[raster], merged[place], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", [name for name in PROMPTS if name not in ("no image", "tiny image")])
def test_pruned_output_equals_a_prompt_built_by_hand(adapter, plain_qwen, qwen_tokenizer, noise, case):
    """The unpruned prompt, of which the rows that the selection drops are deleted; positions stay."""
    parts = PROMPTS[case](noise)
    inputs = transformers_inputs(qwen_tokenizer, parts)
    images = encode(adapter, parts)
    text = adapter.question_embeddings(QUESTION)
    pruner = get_pruner("mmtok", **adapter.architecture.pruner_params)
    kept = []
    for image in images:
        chosen = pruner.select(parts_to_prune(image, pruner, text, seed=0), 2)
        kept.append(torch.cat([part.positions[c] for part, c in zip(image.layout.parts, chosen, strict=True)]))

    with torch.inference_mode():
        embeddings = plain_qwen.get_input_embeddings()(inputs["input_ids"][0]).clone()
        kinds = inputs["mm_token_type_ids"][0]
        if "pixel_values" in inputs:
            seen = plain_qwen.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
            embeddings[kinds == 1] = torch.cat(seen.pooler_output)
        if "pixel_values_videos" in inputs:
            seen = plain_qwen.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
            embeddings[kinds == 2] = torch.cat(seen.pooler_output)
        positions, _ = plain_qwen.model.get_rope_index(**{k: v for k, v in inputs.items() if not k.startswith("pixel")})
        stays = kinds == 0
        starts = [i for i in range(1, len(kinds)) if kinds[i] and not kinds[i - 1]]
        for start, places in zip(starts, kept, strict=True):
            for place in places.tolist():
                stays[start + place] = True
        by_hand, by_hand_positions = embeddings[stays], positions[:, 0, stays]
        next_position = int(positions.max()) + 1
        expected = []
        for step in range(8):
            out = plain_qwen(inputs_embeds=by_hand[None], position_ids=by_hand_positions[:, None]).logits[0, -1]
            expected.append(out)
            by_hand = torch.cat([by_hand, plain_qwen.get_input_embeddings()(out.argmax()[None])])
            by_hand_positions = torch.cat([by_hand_positions, torch.full((3, 1), next_position + step)], dim=1)

    prompt = adapter.assemble(adapter.tokenize(chat(*parts)), images, kept)
    assert len(prompt[0]) == int(stays.sum()) < len(kinds)
    assert prompt[1][:, :-1].tolist() == positions[:, 0, stays].tolist()
    assert prompt[1][:, -1].tolist() == [next_position] * 3
    tokens, logits = greedy(adapter, prompt, 8)
    assert tokens == [int(out.argmax()) for out in expected[: len(tokens)]]
    torch.testing.assert_close(logits, torch.stack(expected[: len(tokens)]), atol=1e-4, rtol=1e-4)


def test_a_clip_has_one_part_for_each_pair_of_frames(adapter, noise):
    frames = [noise(84, 56, seed=i) for i in range(5)]
    [encoded] = encode(adapter, [frames])
    parts = encoded.layout.parts
    assert encoded.layout.total == 3 * 6
    assert [part.positions.tolist() for part in parts] == [list(range(start, start + 6)) for start in (0, 6, 12)]
    assert all(part.grid == (2, 3) for part in parts)
    with torch.inference_mode():
        pixels, grid = clip(frames)
        merged = adapter.model.model.get_video_features(pixels, grid).pooler_output[0]
    torch.testing.assert_close(encoded.tokens, merged, atol=1e-5, rtol=1e-5)


def test_frames_of_a_clip_are_smaller_than_stills_may_be(adapter, noise, monkeypatch):
    monkeypatch.setattr("covervlm.server.models.qwen2_5_vl._FRAME_TOKENS", 9)
    frame = noise(400, 400)
    assert adapter.preprocess(frame)["grid"].tolist() == [1, 16, 16]
    assert adapter.preprocess_video([frame, frame], 2.0)["grid"].tolist() == [1, 6, 6]


def test_batched_encoding_equals_one_by_one(adapter, noise):
    inputs = [adapter.preprocess(noise(w, h, seed=w)) for w, h in [(100, 60), (196, 140), (28, 300)]]
    inputs.append(adapter.preprocess_video([noise(84, 56, seed=i) for i in range(4)], 2.0))
    for batched, entry in zip(adapter.encode(inputs), inputs, strict=True):
        [single] = adapter.encode([entry])
        torch.testing.assert_close(batched.tokens, single.tokens, atol=1e-5, rtol=1e-5)
        assert len(batched.layout.parts) == len(single.layout.parts)
        torch.testing.assert_close(batched.features, single.features, atol=1e-5, rtol=1e-5)


def test_every_word_of_the_question_guides_the_selection(adapter, qwen_tokenizer):
    ids = qwen_tokenizer(" Question Which color does the star have", add_special_tokens=False).input_ids
    torch.testing.assert_close(adapter.question_embeddings(QUESTION), adapter.embeddings(torch.tensor(ids)))
    assert adapter.question_embeddings(" ").shape == (0, 64)


def test_this_model_has_its_own_text_temperature(adapter):
    assert adapter.architecture.pruner_params == {"tau_text": 0.01}


def test_there_is_no_cls_attention(adapter, noise):
    assert not adapter.architecture.has_cls_token
    with pytest.raises(ValueError, match="no CLS token"):
        adapter.encode([adapter.preprocess(noise(56, 56))], cls_attention=True)


@pytest.mark.parametrize("placeholder", [IMAGE, VIDEO])
def test_a_placeholder_in_a_text_is_text(adapter, noise, placeholder):
    ids = adapter.tokenize(chat(noise(56, 56), f"what is {placeholder}?"))
    assert len(adapter.chat.slots(ids)) == 1


def test_an_image_too_long_for_the_processor_is_the_callers_mistake(adapter, noise):
    with pytest.raises(InvalidRequest, match=r"2000 x 1 .* aspect ratio .* cut it into pieces") as refused:
        adapter.preprocess(noise(2000, 1))
    assert refused.value.code == "image_too_large"


@pytest.mark.parametrize("sizes", [[], [(56, 56), (56, 84)]])
def test_frames_of_different_sizes_are_refused(adapter, noise, sizes):
    with pytest.raises(InvalidRequest, match="same size"):
        adapter.preprocess_video([noise(*size) for size in sizes], 2.0)
