"""Clips under vLLM: read as by transformers where they are whole, and pruned as by the embedded engine."""

import asyncio
import hashlib
from dataclasses import replace

import numpy as np
import pytest
import tiny_onevision
import tiny_qwen
import tiny_qwen3
import torch
from PIL import Image
from plain_generate import generate
from transformers import (
    AutoTokenizer,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import (
    GenerationRequest,
    ImagePart,
    Message,
    PruningPolicy,
    SamplingParams,
    VideoPart,
)

QUESTION, OTHER = "Which color does the star have?", "How many circles are there?"
READ = ("llava_onevision", "qwen2_5_vl", "qwen3_vl")
MODELS = {
    "LlavaOnevisionForConditionalGeneration": LlavaOnevisionForConditionalGeneration,
    "Qwen2_5_VLForConditionalGeneration": Qwen2_5_VLForConditionalGeneration,
    "Qwen3VLForConditionalGeneration": Qwen3VLForConditionalGeneration,
}


def noise(width, height, seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def film(count, seed, size=(112, 80), fps=2.0):
    frames = tuple(noise(*size, 100 * seed + i) for i in range(count))
    digest = hashlib.sha256(repr((size, fps)).encode() + b"".join(frame.tobytes() for frame in frames))
    return VideoPart(frames, digest.hexdigest(), fps)


def picture(seed, size=(90, 60)):
    image = noise(*size, seed)
    return ImagePart(image, hashlib.sha256(repr(size).encode() + image.tobytes()).hexdigest())


def asked(*parts, **pruning):
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    return GenerationRequest("test", (Message("user", parts),), params, PruningPolicy(**pruning))


@pytest.fixture
def readers(engines):
    """The engines of a model that reads clips."""
    if engines.checkpoint.name.rstrip("0123456789") not in READ:
        pytest.skip("this model reads no clips")
    return engines


def tokens(answer):
    return [token for chunk in answer.chunks for token in chunk.token_ids]


@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("budget", [{}, {"keep_tokens": 100_000}], ids=["no budget", "room for all"])
async def test_whole_clips_are_answered_as_by_transformers_generate(readers, answer, count, budget):
    plain = MODELS[readers.vllm.info.architecture].from_pretrained(readers.checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(readers.checkpoint)
    clip, still = film(count, count), picture(7)
    parts = (still.image, list(clip.frames), QUESTION)
    if "Onevision" in readers.vllm.info.architecture:
        inputs = tiny_onevision.inputs_of(plain, tokenizer, parts)
    elif "Qwen3" in readers.vllm.info.architecture:
        inputs = tiny_qwen3.inputs_of(plain, tokenizer, parts)
    else:
        inputs = tiny_qwen.transformers_inputs(tokenizer, parts)
    got = await answer(readers.vllm, asked(still, clip, QUESTION, **budget))
    assert list(got.prompt.token_ids) == inputs["input_ids"][0].tolist()
    wanted, _ = generate(plain, inputs, 8)
    assert tokens(got)[: len(wanted)] == wanted


CLIPS = {
    "one": lambda: (film(6, 1), QUESTION),
    "odd": lambda: (film(3, 2), QUESTION),
    "one frame": lambda: (film(1, 3), QUESTION),
    "slow": lambda: (film(6, 4, fps=0.3), QUESTION),
    "fast": lambda: (film(6, 4, fps=24.0), QUESTION),
    "two of unequal lengths": lambda: (film(4, 5), "then", film(2, 6, size=(84, 56)), QUESTION),
    "between pictures": lambda: (picture(1), film(4, 7), "and", picture(2, (60, 100)), QUESTION),
    "the same twice": lambda: (film(3, 8), film(3, 8), QUESTION),
}
POLICIES = [
    {},
    {"keep_tokens": 9},
    {"keep_ratio": 0.4, "method": "divprune"},
    {"keep_tokens": 6, "method": "vision_coverage"},
]


async def test_mixed_concurrent_requests_keep_the_same_tokens_and_their_answers_are_equal(readers, answer):
    requests = [asked(*parts(), **policy, return_indices=True) for parts in CLIPS.values() for policy in POLICIES]
    got = await asyncio.gather(*(answer(readers.vllm, request) for request in requests))
    wanted = [await answer(readers.reference, request) for request in requests]
    assert [list(one.prompt.token_ids) for one in got] == [list(one.prompt.token_ids) for one in wanted]
    for mine, theirs in zip(got, wanted, strict=True):
        for image, reference in zip(mine.prompt.images, theirs.prompt.images, strict=True):
            assert image.indices == reference.indices
            assert (image.total, image.kept, image.method) == (reference.total, reference.kept, reference.method)
            assert (image.grid, image.box) == (reference.grid, reference.box)
            assert image.coverage == pytest.approx(reference.coverage, abs=1e-4)
    assert [tokens(one) for one in got] == [tokens(one) for one in wanted]


async def test_every_method_of_pictures_prunes_every_moment_alike(readers, answer):
    clip = film(5, 9)
    methods = [name for name in readers.vllm.info.methods if name != "none"]
    for method in methods:
        request = asked(clip, QUESTION, method=method, keep_tokens=12, return_indices=True)
        mine, theirs = [await answer(engine, request) for engine in (readers.vllm, readers.reference)]
        assert mine.prompt.images[0].indices == theirs.prompt.images[0].indices, method
        assert tokens(mine) == tokens(theirs), method


async def test_budgets_of_pictures_and_clips_are_in_reading_order(readers, answer):
    parts = (film(4, 10), picture(3), film(2, 11), QUESTION)
    for counts in ((8, 3, 100_000), (100_000, 100_000, 4)):
        request = asked(*parts, keep_tokens=counts, return_indices=True)
        mine, theirs = [await answer(engine, request) for engine in (readers.vllm, readers.reference)]
        assert [one.indices for one in mine.prompt.images] == [one.indices for one in theirs.prompt.images]
        assert tokens(mine) == tokens(theirs)


async def test_caches_tell_apart_content_pace_and_pruning_and_nothing_else(readers):
    _, prompts = readers.vllm._loaded()

    async def name(clip, text=QUESTION, **pruning):
        [digest] = (await prompts.render(asked(clip, text, **pruning))).digests
        return digest

    clip = film(4, 12)
    few = {"keep_tokens": 8}
    assert await name(clip, **few) == await name(clip, **few)
    faster = replace(clip, fps=3.0)  # under the same name
    others = [await name(clip, OTHER, **few), await name(faster, **few), await name(film(4, 13), **few)]
    others += [await name(clip, keep_tokens=7), await name(clip, method="divprune", **few), await name(clip)]
    assert len({await name(clip, **few), *others}) == 7
    assert await name(clip) == await name(clip, OTHER) == await name(clip, keep_tokens=100_000)
    assert await name(faster) != await name(clip)


async def test_a_clip_is_looked_at_once_whatever_is_asked_about_it(readers, answer):
    clip = film(4, 14)
    first = asked(clip, QUESTION, keep_tokens=8)
    await answer(readers.vllm, first)
    before = (await readers.vllm._llm.collective_rpc("covervlm_cache"))[0]
    await answer(readers.vllm, asked(clip, OTHER, keep_tokens=8))
    after = (await readers.vllm._llm.collective_rpc("covervlm_cache"))[0]
    assert (after[1] - before[1], after[2] - before[2]) == (1, 0)  # a hit, no miss


async def test_what_cannot_be_is_refused(engines, answer):
    if engines.checkpoint.name.rstrip("0123456789") not in READ:
        with pytest.raises(InvalidRequest, match="reads images, not videos"):
            await answer(engines.vllm, asked(film(2, 15), QUESTION))
    elif engines.checkpoint.name.startswith("qwen"):
        released = asked(film(4, 15), QUESTION, method="divprune", recipe="released", keep_tokens=5)
        with pytest.raises(InvalidRequest, match="released recipe"):
            await answer(engines.vllm, released)
