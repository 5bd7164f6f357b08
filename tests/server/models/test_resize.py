"""A budget met by a smaller picture: the one that Pillow would scale, and what transformers answers about it."""

import pytest
import pytest_asyncio
import torch
from PIL import Image
from transformers import Qwen3VLForConditionalGeneration

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import GenerationRequest, PruningPolicy, SamplingParams
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from covervlm.server.models.qwen2_5_vl import scaled_size
from tests.server.models import tiny_qwen, tiny_qwen3
from tests.server.models.plain_generate import generate

QUESTION = "Which color does the star have?"


def request(parts, **pruning) -> GenerationRequest:
    sampling = SamplingParams(temperature=0.0, max_tokens=8, logprobs=True)
    return GenerationRequest("test", tiny_qwen.chat(*parts), sampling, PruningPolicy("resize", **pruning))


def shown(tokenizer, ids) -> list[str]:
    return [text for token in ids if (text := tokenizer.decode([token], skip_special_tokens=True))]


@pytest_asyncio.fixture
async def engine(tiny_qwen):
    engine = TransformersEngine(TransformersEngineConfig(str(tiny_qwen), threads=1))
    await engine.start()
    yield engine
    await engine.stop()


def scaled(image, columns, rows, side):
    return image.resize((columns * side, rows * side), Image.Resampling.BICUBIC)


async def test_answers_are_those_about_the_picture_that_pillow_scales(
    engine, plain_qwen, qwen_tokenizer, answer, noise
):
    image = noise(224, 140)  # 8 x 5 tokens of 28 pixels
    for pruning, size, kept in (
        ({"keep_tokens": 15}, (5, 3), 15),
        ({"keep_tokens": 12}, (4, 3), 12),
        ({"keep_ratio": 0.5}, (5, 4), 20),
    ):
        got = await answer(engine, request((image, QUESTION), return_indices=True, **pruning))
        inputs = tiny_qwen.transformers_inputs(qwen_tokenizer, (scaled(image, *size, 28), QUESTION))
        assert got.choices[0].tokens == shown(qwen_tokenizer, generate(plain_qwen, inputs, 8)[0])
        [report] = got.prompt.images
        assert (report.total, report.kept, report.method, report.coverage) == (40, kept, "resize", None)
        assert (report.indices, report.grid) == (tuple(range(kept)), size[::-1])
        assert got.prompt.prompt_tokens == inputs["input_ids"].shape[1]


async def test_two_pictures_one_of_which_has_room_and_the_same_picture_whole(
    engine, plain_qwen, qwen_tokenizer, answer, noise
):
    large, small = noise(224, 140), noise(84, 56, seed=1)
    got = await answer(engine, request((large, "and", small, QUESTION), keep_tokens=(12, 50)))
    parts = (scaled(large, 4, 3, 28), "and", small, QUESTION)
    expected = generate(plain_qwen, tiny_qwen.transformers_inputs(qwen_tokenizer, parts), 8)[0]
    assert got.choices[0].tokens == shown(qwen_tokenizer, expected)
    assert [(one.total, one.kept, one.method) for one in got.prompt.images] == [(40, 12, "resize"), (6, 6, "none")]
    whole = await answer(engine, request((large, QUESTION), keep_tokens=40))
    expected = generate(plain_qwen, tiny_qwen.transformers_inputs(qwen_tokenizer, (large, QUESTION)), 8)[0]
    assert whole.choices[0].tokens == shown(qwen_tokenizer, expected)
    assert whole.prompt.images[0].kept == 40


async def test_every_moment_of_a_clip_is_scaled_alike(engine, plain_qwen, qwen_tokenizer, answer, noise):
    frames = [noise(224, 140, seed=i) for i in range(4)]
    got = await answer(engine, request((frames, QUESTION), keep_tokens=25))
    parts = ([scaled(frame, 4, 3, 28) for frame in frames], QUESTION)
    expected = generate(plain_qwen, tiny_qwen.transformers_inputs(qwen_tokenizer, parts), 8)[0]
    assert got.choices[0].tokens == shown(qwen_tokenizer, expected)
    assert [(one.total, one.kept) for one in got.prompt.images] == [(80, 24)]


async def test_qwen3_reads_scaled_pictures_and_clips_and_their_deeper_features(tmp_path, answer, noise):
    tiny_qwen3.save_tiny_qwen3(tmp_path)
    plain = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    engine = TransformersEngine(TransformersEngineConfig(str(tmp_path), threads=1))
    await engine.start()
    image, tokenizer = noise(224, 160), engine.adapter.tokenizer  # 7 x 5 tokens of 32 pixels
    got = await answer(engine, request((image, QUESTION), keep_tokens=12))
    inputs = tiny_qwen3.inputs_of(plain, tokenizer, (scaled(image, 4, 3, 32), QUESTION))
    assert got.choices[0].tokens == shown(tokenizer, generate(plain, inputs, 8)[0])
    assert [(one.total, one.kept) for one in got.prompt.images] == [(35, 12)]
    frames = [noise(224, 160, seed=i) for i in range(3)]
    got = await answer(engine, request((frames, QUESTION), keep_tokens=25))
    inputs = tiny_qwen3.inputs_of(plain, tokenizer, ([scaled(frame, 4, 3, 32) for frame in frames], QUESTION))
    assert list(got.prompt.token_ids) == inputs["input_ids"][0].tolist()
    assert got.choices[0].tokens == shown(tokenizer, generate(plain, inputs, 8)[0])
    assert [(one.total, one.kept) for one in got.prompt.images] == [(70, 24)]
    await engine.stop()


def test_no_picture_makes_more_tokens_than_the_budget_or_loses_its_shape():
    for width, height in ((1, 1), (640, 480), (480, 640), (1920, 1080), (3000, 20), (20, 3000), (200, 1)):
        for cells in (1, 2, 3, 7, 64, 100, 1000):
            across, down = scaled_size(width, height, 28, cells)
            assert across % 28 == down % 28 == 0
            columns, rows = across // 28, down // 28
            assert 1 <= columns * rows <= cells
            exact = (cells * width / height) ** 0.5, (cells * height / width) ** 0.5
            if min(exact) >= 2:
                assert abs(columns - exact[0]) < 1
                assert abs(rows - exact[1]) < 1
                assert columns * rows >= cells - max(exact) - 1


async def test_coverage_and_fixed_resolutions_are_refused(engine, answer, noise):
    assert "resize" in engine.info.methods
    with pytest.raises(InvalidRequest, match="no smallest set"):
        await answer(engine, request((noise(84, 56), QUESTION), coverage=0.5))


async def test_a_model_of_one_resolution_does_not_offer_it(ask, answer, scene):
    from covervlm.server.demo import model_path

    engine = TransformersEngine(TransformersEngineConfig(str(model_path()), threads=1))
    await engine.start()
    assert "resize" not in engine.info.methods
    with pytest.raises(InvalidRequest, match="whose tower takes pictures of any size") as refused:
        await answer(engine, ask(scene(0), QUESTION, pruning={"method": "resize", "keep_tokens": 8}))
    assert refused.value.param == "vision_pruning.method"
    await engine.stop()
