"""InternVL's tokens lie in its tiles, and then in the view of the whole; a clip's lie in its frames."""

import json
import shutil
from copy import copy
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import InternVLForConditionalGeneration, Qwen2Tokenizer

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from covervlm.server.models.internvl import InternVL
from covervlm.server.models.processor import ChatProcessor, Processor
from tests.server.models.tiny_internvl import (
    NAMED,
    PIXELS,
    SIDE,
    SPECIALS,
    TEMPLATE,
    image_processor,
    save_tiny_internvl,
    spelled,
    tiles,
)
from tests.server.models.tiny_qwen import chat


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("internvl")
    save_tiny_internvl(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(folder):
    return load_adapter(Checkpoint(folder))


@pytest.mark.parametrize(
    ("size", "crops"), [((30, 32), 1), ((40, 90), 3), ((300, 200), 7), ((64, 64), 5), ((1, 1), 1)], ids=str
)
def test_each_crop_is_a_part_and_its_features_are_averages_over_patches(adapter, folder, noise, size, crops):
    plain = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    image = noise(*size)
    pixels = tiles(image)
    assert len(pixels) == crops
    with torch.inference_mode():
        states = plain.model.vision_tower(pixels).last_hidden_state[:, 1:]
        tokens = plain.get_image_features(pixels).pooler_output
        shuffled = plain.model.pixel_shuffle(states.view(crops, SIDE, SIDE, -1))
        projected = plain.model.multi_modal_projector(shuffled.flatten(1, 2))
    [encoded] = adapter.encode([adapter.preprocess(image)])
    torch.testing.assert_close(encoded.tokens, tokens.flatten(0, 1), atol=1e-5, rtol=1e-5)
    assert encoded.layout.total == crops * 4
    for crop, part in enumerate(encoded.layout.parts):
        assert part.grid == (2, 2)
        assert part.positions.tolist() == list(range(crop * 4, crop * 4 + 4))
        for place in range(4):
            top, left = place // 2 * 2, place % 2 * 2
            patches = [(top + row) * SIDE + left + column for row in range(2) for column in range(2)]
            torch.testing.assert_close(
                encoded.features[part.rows[place]], states[crop, patches].mean(0), atol=1e-5, rtol=1e-5
            )
            torch.testing.assert_close(encoded.tokens[part.rows[place]], projected[crop, place], atol=1e-5, rtol=1e-5)


def test_only_an_image_of_one_tile_can_be_drawn_on(adapter, noise):
    assert adapter.encode([adapter.preprocess(noise(30, 32))])[0].box == (0, 0, 30, 32)
    [tiled] = adapter.encode([adapter.preprocess(noise(300, 200))])
    assert (tiled.box, tiled.layout.grid) == (None, None)


def test_an_image_stands_between_its_start_and_its_end(adapter, noise):
    ids = adapter.tokenize(chat(noise(9, 9), "a", noise(8, 8)))
    names = adapter.tokenizer.convert_ids_to_tokens(list(ids))
    places = [i for i, name in enumerate(names) if name == "<IMG_CONTEXT>"]
    assert [names[place - 1 : place + 2] for place in places] == [["<img>", "<IMG_CONTEXT>", "</img>"]] * 2


def test_methods_of_the_cls_token_are_not_offered(adapter, noise):
    assert not adapter.architecture.has_cls_token
    with pytest.raises(ValueError, match="CLS token"):
        adapter.encode([adapter.preprocess(noise(9, 9))], cls_attention=True)


def test_a_clip_has_one_part_and_one_place_in_the_prompt_for_each_frame(adapter, folder, noise):
    plain = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    frames = [noise(40, 30, seed=i) for i in range(3)]
    [encoded] = adapter.encode([adapter.preprocess_video(frames, 2.0)])
    assert (encoded.layout.total, encoded.layout.slots, encoded.layout.grid) == (12, 3, None)
    assert [part.positions.tolist() for part in encoded.layout.parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert encoded.layout.counts(torch.tensor([0, 4, 5, 7, 10])) == [1, 3, 1]
    assert (encoded.seconds_per_group, encoded.box) == (0.5, None)
    with torch.inference_mode():
        expected = plain.get_image_features(tiles(frames)).pooler_output.flatten(0, 1)
    torch.testing.assert_close(encoded.tokens, expected, atol=1e-5, rtol=1e-5)
    assert len(adapter.chat.slots(adapter.tokenize(chat("Look:", frames, "What happens?")))) == 3


def test_kept_tokens_stay_with_the_frame_that_they_show(adapter, noise):
    frames = [noise(40, 30, seed=i) for i in range(3)]
    ids = adapter.tokenize(chat(frames, "What happens?"))
    [encoded] = adapter.encode([adapter.preprocess_video(frames, 2.0)])
    kept = torch.tensor([1, 4, 5, 7, 10])
    embeddings, _ = adapter.assemble(ids, [encoded], [kept])
    slots, read = adapter.chat.slots(ids), encoded.at(kept)
    for moment, own in enumerate(read.split([1, 3, 1])):
        first = slots[moment] + sum((1, 3, 1)[:moment]) - moment
        assert torch.equal(embeddings[first : first + len(own)], own)
    assert len(embeddings) == len(ids) - 3 + 5


def test_frames_are_a_tile_each_and_have_the_pixels_of_pillow(adapter, noise):
    image = noise(300, 200)
    [values] = adapter.preprocess_video([image], 1.0)["pixel_values"]
    resized = np.asarray(image.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC), dtype=np.float64)
    processor = image_processor()
    expected = torch.tensor((resized / 255 - processor.image_mean) / processor.image_std, dtype=torch.float32)
    torch.testing.assert_close(values, expected.permute(2, 0, 1), atol=1e-6, rtol=1e-6)


def test_a_clip_is_priced_by_its_frames(adapter, noise):
    cost = adapter.architecture.cost(300, 200, adapter.chat.image_processor, frames=5)
    assert cost.numbers == adapter.preprocess_video([noise(300, 200)] * 5, 1.0)["pixel_values"].numel()


def test_a_token_may_reach_from_the_text_before_a_clip_into_its_first_line(adapter, noise):
    """As in vocabularies of published checkpoints, where a colon and a letter are one token."""
    vocabulary = {character: i for i, character in enumerate([*sorted(ByteLevel.alphabet()), ":F"])}
    names = {"unk_token": "<|endoftext|>", "eos_token": "<|im_end|>", "extra_special_tokens": SPECIALS}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[(":", "F")], **names, **NAMED)
    processor = Processor(tokenizer, image_processor(), TEMPLATE)
    config = copy(adapter.architecture.config)
    image = config.image_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    architecture = InternVL(config)
    reader = ChatProcessor(
        processor, architecture.placeholders(tokenizer), architecture.clip_text(tokenizer, processor)
    )
    frames = [noise(9, 9, seed=i) for i in range(2)]
    ids = reader.tokenize(chat("Look:", frames, "What happens?"))
    text = "<|im_start|>user\nLook:<video>\nWhat happens?<|im_end|>\n<|im_start|>assistant\n"
    start, end = map(tokenizer.convert_tokens_to_ids, ("<img>", "</img>"))
    whole = chain.from_iterable([start, *[token] * 4, end] if token == image else [token] for token in ids)
    assert list(whole) == tokenizer(spelled(tokenizer, text, [frames])).input_ids
    assert vocabulary[":F"] in ids


def test_a_clip_that_a_text_speaks_of_is_none(adapter, noise):
    ids = adapter.tokenize(chat([noise(9, 9)], "Is <video> a tag?"))
    assert len(adapter.chat.slots(ids)) == 1
    assert "Is < video> a tag?" in adapter.tokenizer.decode(list(ids))


def test_a_template_without_clips_says_so(folder, noise):
    adapter = load_adapter(Checkpoint(folder))
    adapter.chat.processor.chat_template = TEMPLATE.replace("part.type == 'video'", "false")
    with pytest.raises(InvalidRequest, match="not videos"):
        adapter.tokenize(chat([noise(9, 9)], "What happens?"))


def test_a_tokenizer_that_names_no_clips_reads_pictures_alone(folder, tmp_path, noise):
    unnamed = shutil.copytree(folder, tmp_path / "unnamed")
    file = unnamed / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["video_token"]
    file.write_text(json.dumps(settings))
    adapter = load_adapter(Checkpoint(unnamed))
    assert len(adapter.chat.slots(adapter.tokenize(chat(noise(9, 9), "What is it?")))) == 1
    with pytest.raises(InvalidRequest, match="not videos"):
        adapter.tokenize(chat([noise(9, 9)], "What happens?"))


def test_a_tokenizer_that_does_not_name_what_stands_around_images_is_refused(adapter):
    tokenizer = adapter.tokenizer
    del tokenizer._special_tokens_map["start_image_token"]
    with pytest.raises(ValueError, match="start_image_token"):
        adapter.architecture.frame(tokenizer)
