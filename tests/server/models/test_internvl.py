"""InternVL's tokens lie in its tiles, and then in the view of the whole."""

import pytest
import torch
from transformers import InternVLForConditionalGeneration

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from tests.server.models.tiny_internvl import SIDE, save_tiny_internvl, tiles
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


def test_clips_are_refused(adapter, noise):
    with pytest.raises(InvalidRequest, match="not videos"):
        adapter.tokenize(chat([noise(9, 9)], "What happens?"))


def test_a_tokenizer_that_does_not_name_what_stands_around_images_is_refused(adapter):
    tokenizer = adapter.tokenizer
    del tokenizer._special_tokens_map["start_image_token"]
    with pytest.raises(ValueError, match="start_image_token"):
        adapter.architecture.frame(tokenizer)
