"""LLaVA-OneVision's tokens are transformers' own, and each belongs to the tile that it shows."""

import json
import math
import shutil

import pytest
import torch
from torch.nn.functional import interpolate
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from covervlm.server.core.generation import GenerationRequest, PruningPolicy, SamplingParams
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from tests.server.models.plain_generate import generate
from tests.server.models.tiny_onevision import (
    PATCH,
    PIXELS,
    QUESTION,
    SIDE,
    frame,
    image_processor,
    inputs_of,
    save_tiny_onevision,
    vision,
)
from tests.server.models.tiny_qwen import chat

SIZES = [(24, 24), (20, 24), (48, 24), (60, 25), (96, 96), (96, 90), (70, 96), (72, 96), (1, 1), (200, 2), (3, 96)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onevision")
    save_tiny_onevision(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(folder):
    return load_adapter(Checkpoint(folder))


@pytest.fixture(scope="module")
def plain(folder):
    return LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_tokens_of_an_image_are_those_that_transformers_packs(adapter, plain, noise, size):
    image = noise(*size)
    [encoded] = adapter.encode([adapter.preprocess(image)])
    torch.testing.assert_close(adapter.whole(encoded), vision(plain, image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_each_token_belongs_to_the_tile_that_its_centre_lies_in(adapter, plain, noise, size):
    """Tower features, the grid and its scaling by hand, in plain loops."""
    image = noise(*size)
    inputs = image_processor()(image, return_tensors="pt")
    with torch.inference_mode():
        features = plain.model.vision_tower(inputs.pixel_values[0], output_hidden_states=True).hidden_states[-1]
    [encoded] = adapter.encode([adapter.preprocess(image)])
    layout = encoded.layout

    down, across = best_tiles(*size)
    rows, columns = down * SIDE, across * SIDE
    grid = torch.zeros(rows, columns, features.shape[-1])
    for row in range(rows):
        for column in range(columns):
            tile = 1 + row // SIDE * across + column // SIDE
            grid[row, column] = features[tile, row % SIDE * SIDE + column % SIDE]
    width, height = size
    top = left = 0
    if width / height > columns / rows:
        top = (rows - int(round(height * columns / width, 7))) // 2
    else:
        left = (columns - int(round(width * rows / height, 7))) // 2
    grid = grid[top : rows - top, left : columns - left]
    tall, wide = grid.shape[:2]
    ratio = math.sqrt(tall * wide / (9 * SIDE**2))
    scaled = ratio > 1.1
    if scaled:
        target = (int(tall // ratio), int(wide // ratio))
        grid = interpolate(grid.permute(2, 0, 1)[None], target, mode="bilinear")[0].permute(1, 2, 0)
    expected = {0: list(range(SIDE * SIDE))}
    rows_of = list(features[0])
    for row in range(grid.shape[0]):
        for column in range(grid.shape[1]):
            y = top + (row + 0.5) * tall / grid.shape[0]
            x = left + (column + 0.5) * wide / grid.shape[1]
            tile = 1 + int(y // SIDE) * across + int(x // SIDE)
            expected.setdefault(tile, []).append(SIDE * SIDE + row * (grid.shape[1] + 1) + column)
            rows_of.append(grid[row, column])
    assert layout.total == SIDE * SIDE + grid.shape[0] * (grid.shape[1] + 1)
    assert [part.positions.tolist() for part in layout.parts] == [expected[tile] for tile in sorted(expected)]
    assert all(math.prod(part.grid) == len(part.positions) for part in layout.parts)
    torch.testing.assert_close(encoded.features, torch.stack(rows_of), atol=1e-5, rtol=1e-5)
    for part in layout.parts:
        torch.testing.assert_close(
            adapter.whole(encoded)[part.positions], encoded.tokens[part.rows], atol=1e-6, rtol=1e-6
        )


def best_tiles(width, height):
    """(rows, columns) of tiles: most of the image's pixels are used, then the fewest are wasted."""

    def worth(tiles):
        tall, wide = tiles[0] * PIXELS, tiles[1] * PIXELS
        scale = min(wide / width, tall / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        return used, used - tall * wide

    return max(((rows, columns) for rows in range(1, 5) for columns in range(1, 5)), key=worth)


def test_the_largest_image_is_scaled_down_and_small_ones_are_not(adapter, noise):
    total = adapter.architecture.layout((96, 96)).total
    assert total == 9 + 9 * 10  # 12 x 12 cells become 9 x 9
    assert adapter.architecture.layout((72, 72)).total == 9 + 9 * 10
    assert adapter.architecture.layout((48, 48)).total == 9 + 6 * 7


def test_a_clip_has_one_part_for_each_frame_and_a_newline_at_its_end(adapter, plain, noise):
    frames = [noise(40, 30, seed=i) for i in range(3)]
    [encoded] = adapter.encode([adapter.preprocess_video(frames, 2.0)])
    assert encoded.layout.total == 3 * 4 + 1
    assert [part.positions.tolist() for part in encoded.layout.parts] == [
        list(range(start, start + 4)) for start in (0, 4, 8)
    ]
    assert encoded.seconds_per_group == 0.5
    torch.testing.assert_close(adapter.whole(encoded), vision(plain, frames), atol=1e-5, rtol=1e-5)


def test_frames_have_the_pixels_of_pillow(adapter, noise):
    image = noise(40, 30)
    [values] = adapter.preprocess_video([image], 1.0)["pixel_values"]
    torch.testing.assert_close(values, frame(image), atol=1e-6, rtol=1e-6)


def test_a_clip_is_priced_by_its_frames(adapter, noise):
    processor = adapter.chat.image_processor
    cost = adapter.architecture.cost(40, 30, processor, frames=5)
    assert cost.numbers == adapter.preprocess_video([noise(40, 30)] * 5, 1.0)["pixel_values"].numel()
    assert PATCH * SIDE == PIXELS


async def test_pictures_and_clips_stand_where_the_template_writes_them(folder, plain, answer, noise, tmp_path):
    """The published template writes a message's images first, its clips then, and its texts last."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    kinds = "".join(
        "{% for part in message.content if part.type == '" + kind + "' %}" + written + "{% endfor %}"
        for kind, written in {"image": "<image>", "video": "<video>", "text": "{{ part.text }}"}.items()
    )
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }} \n" + kinds + "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    first, second = noise(20, 24), noise(48, 24, seed=1)
    clips = [[noise(40, 30, seed=seed + i) for i in range(3)] for seed in (2, 7)]
    engine = TransformersEngine(TransformersEngineConfig(str(tmp_path), threads=1))
    await engine.start()
    try:
        sampling = SamplingParams(temperature=0.0, max_tokens=8, logprobs=True)
        prompt = chat(clips[0], first, clips[1], second, QUESTION)
        got = await answer(engine, GenerationRequest("test", prompt, sampling, PruningPolicy(return_indices=True)))
    finally:
        await engine.stop()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    inputs = inputs_of(plain, tokenizer, (first, second, *clips, QUESTION))
    expected = generate(plain, inputs, 8)[0]
    assert list(got.prompt.token_ids) == inputs["input_ids"][0].tolist()
    assert got.choices[0].tokens == [
        text for token in expected if (text := tokenizer.decode([token], skip_special_tokens=True))
    ]
    tokens = [len(vision(plain, part)) for part in (clips[0], first, clips[1], second)]
    assert [image.total for image in got.prompt.images] == tokens  # reports stay in the request's order
