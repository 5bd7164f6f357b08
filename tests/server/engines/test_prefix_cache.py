"""Prompts that were read before: found by their owner alone, and the same answers as without."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch

from covervlm.server.core.caller import Caller
from covervlm.server.core.generation import GenerationRequest, Message, PruningPolicy, SamplingParams
from covervlm.server.demo import model_path
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from covervlm.server.engines.embedded.prefix_cache import PrefixCache, places_of
from tests.server.conftest import image_part
from tests.server.models.tiny_internvl import save_tiny_internvl
from tests.server.models.tiny_llava import save_tiny_llava_next
from tests.server.models.tiny_qwen import chat, save_tiny_qwen
from tests.server.models.tiny_qwen3 import save_tiny_qwen3

CHECKPOINTS = {
    "llava_next": save_tiny_llava_next,
    "internvl": save_tiny_internvl,
    "qwen2_5_vl": save_tiny_qwen,
    "qwen3_vl": save_tiny_qwen3,
}
MIB = 2**20


def prompt(*tokens):
    return np.array(tokens)


def layers(tokens, count=2):
    """Keys and values that tell their place: 8 bytes a token and side."""
    side = torch.arange(len(tokens), dtype=torch.float32)[None, None, :, None].expand(1, 1, -1, 2)
    return [(side, -side)] * count


def remember(cache, owner, *tokens):
    cache.put(owner, prompt(*tokens), layers(tokens))


def test_the_longest_beginning_is_found_and_never_the_whole_prompt():
    cache = PrefixCache(MIB)
    remember(cache, "me", 1, 2, 3, 9)
    remember(cache, "me", 1, 2, 3, 4, 5, 6)
    assert cache.find("me", prompt(1, 2, 3, 4, 5, 7, 8)).length == 5
    assert cache.find("me", prompt(1, 2, 3, 4, 5, 6)).length == 5
    assert cache.find("me", prompt(1, 2, 3, 9)).length == 3


def test_less_than_a_quarter_of_a_prompt_is_not_worth_it():
    cache = PrefixCache(MIB)
    remember(cache, "me", 1, 2, 3)
    assert cache.find("me", prompt(*range(1, 4), *range(20, 29))).length == 3
    assert cache.find("me", prompt(*range(1, 4), *range(20, 30))) is None
    assert cache.find("me", prompt(2, 3)) is None


def test_a_place_of_another_image_is_another_token():
    cache = PrefixCache(MIB)
    remember(cache, "me", 1, *places_of("a", [0, 7]), 2)
    assert cache.find("me", prompt(1, *places_of("a", [0, 7]), 2, 3)).length == 4
    assert cache.find("me", prompt(1, *places_of("a", [0, 8]), 2)).length == 2
    assert cache.find("me", prompt(1, *places_of("b", [0, 7]), 2, 3)) is None


def test_no_place_of_an_image_is_taken_for_a_token_or_for_another():
    seen = [number for key in ("a", "b") for number in places_of(key, range(3000))]
    assert len(set(seen)) == 6000
    assert max(seen) < 0


def test_owners_find_only_what_is_theirs():
    cache = PrefixCache(MIB)
    remember(cache, "me", 1, 2, 3)
    assert cache.find("you", prompt(1, 2, 3)) is None
    assert not cache.knows("you", prompt(1, 2))
    assert cache.knows("me", prompt(1, 2))
    assert not cache.knows("me", prompt(1, 2, 3, 4))


def test_a_longer_prompt_takes_the_place_of_those_that_it_continues():
    cache = PrefixCache(MIB)
    remember(cache, "me", 1, 2)
    before = cache.bytes
    remember(cache, "me", 1, 2, 3)
    assert cache.bytes == before
    assert cache.find("me", prompt(1, 2, 9)).length == 2


def test_memory_is_bounded_in_bytes_and_in_number():
    prompts = [prompt(number, *range(100)) for number in range(300)]
    size = sum(side.numel() * 4 for layer in layers(prompts[0]) for side in layer)
    cache = PrefixCache(10 * size)
    for one in prompts:
        cache.put("me", one, layers(one))
        assert cache.bytes <= 10 * size
    assert [cache.knows("me", one) for one in prompts] == [False] * 290 + [True] * 10
    roomy = PrefixCache(1000 * size)
    for one in prompts:
        roomy.put("me", one, layers(one))
    assert sum(roomy.knows("me", one) for one in prompts) <= 256


@pytest.mark.parametrize("capacity", [0, 100])
def test_what_is_larger_than_the_cache_is_not_kept(capacity):
    cache = PrefixCache(capacity)
    remember(cache, "me", *range(50))
    assert cache.find("me", prompt(*range(50))) is None


# The engine


@pytest.fixture(params=[*CHECKPOINTS, "demo"])
def path(request, tmp_path):
    if request.param == "demo":
        return model_path()
    CHECKPOINTS[request.param](tmp_path)
    return tmp_path


class Engines:
    """The same model twice: one that remembers prompts, and one that reads all of every prompt."""

    def __init__(self, path) -> None:
        self.remembers, self.reads = (
            TransformersEngine(TransformersEngineConfig(str(path), threads=1, prefix_cache_bytes=size))
            for size in (64 * MIB, 0)
        )

    async def __aenter__(self) -> "Engines":
        await self.remembers.start()
        await self.reads.start()
        return self

    async def __aexit__(self, *_) -> None:
        await self.remembers.stop()
        await self.reads.stop()


def turns(image, *texts: str, pruning=None, caller=None, **sampling) -> GenerationRequest:
    """A chat about one image: the user's and the assistant's turns in turn."""
    first, *rest = texts
    messages = [Message("user", (image_part(image), first))]
    messages += [Message("user" if n % 2 else "assistant", (text,)) for n, text in enumerate(rest)]
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 8, "ignore_eos": True, "logprobs": True} | sampling)
    request = GenerationRequest("test", tuple(messages), params, PruningPolicy(**pruning or {}))
    return request if caller is None else replace(request, caller=caller)


@pytest.mark.parametrize(
    "pruning",
    [{"method": "none"}, {"keep_tokens": 5, "method": "vision_coverage"}, {"keep_tokens": 5, "guide": "first_user"}],
    ids=["whole", "question-independent", "first question"],
)
async def test_a_second_turn_reads_its_own_words_and_answers_as_if_it_had_read_all(path, scene, answer, pruning):
    image = scene(0).resize((64, 48))
    async with Engines(path) as engines:
        opening = turns(image, "What is this?", pruning=pruning)
        said = await answer(engines.remembers, opening)
        assert said.prompt.cached_tokens == 0
        again = turns(image, "What is this?", said.text, "And where is it?", pruning=pruning)
        got, expected = await answer(engines.remembers, again), await answer(engines.reads, again)
        assert got.choices[0].tokens == expected.choices[0].tokens
        assert got.prompt.prompt_tokens == expected.prompt.prompt_tokens
        assert expected.prompt.cached_tokens == 0
        assert said.prompt.prompt_tokens - 1 <= got.prompt.cached_tokens < got.prompt.prompt_tokens


async def test_a_selection_that_follows_the_question_is_read_again(scene, answer):
    pruning = {"keep_tokens": 24}
    async with Engines(model_path()) as engines:
        await answer(engines.remembers, turns(scene(3), "What color is the star?", pruning=pruning))
        other = turns(scene(3), "How many objects are there?", pruning=pruning)
        got, expected = await answer(engines.remembers, other), await answer(engines.reads, other)
        assert got.choices[0].tokens == expected.choices[0].tokens
        assert got.prompt.images[0].indices == expected.prompt.images[0].indices


async def test_many_chats_at_once_keep_their_answers(scene, answer):
    """Choices, samples, scores of the prompt, and prompts that share a beginning, beside each other."""
    async with Engines(model_path()) as engines:
        await answer(engines.remembers, turns(scene(0), "What color is the star?", pruning={"method": "none"}))
        requests = [
            turns(scene(0), "What color is the star?", pruning={"method": "none"}, n=2, temperature=1.0, seed=5),
            turns(scene(0), "What color is the square?", pruning={"method": "none"}),
            turns(scene(0), "What color is the star?", pruning={"method": "none"}, prompt_logprobs=1),
            turns(scene(1), "What color is the star?", pruning={"keep_tokens": 16}),
        ]
        got = await asyncio.gather(*(answer(engines.remembers, one) for one in requests))
        expected = await asyncio.gather(*(answer(engines.reads, one) for one in requests))
        for mine, theirs in zip(got, expected, strict=True):
            assert [choice.tokens for choice in mine.choices] == [choice.tokens for choice in theirs.choices]
        assert [one.prompt.cached_tokens > 0 for one in got] == [True, True, False, False]
        likelihoods = [[entry.logprob for entry in one[2].prompt.logprobs[1:]] for one in (got, expected)]
        assert likelihoods[0] == pytest.approx(likelihoods[1], abs=1e-4)


async def test_another_callers_prompt_is_read_as_if_it_were_new(scene, answer):
    async with Engines(model_path()) as engines:
        for owner, cached in (("one", False), ("one", True), ("two", False)):
            got = await answer(engines.remembers, turns(scene(0), "What is this?", caller=Caller(owner)))
            assert bool(got.prompt.cached_tokens) is cached


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
async def test_a_clip_is_read_once_and_its_moments_are_told_apart(name, tmp_path, scene, answer):
    CHECKPOINTS[name](tmp_path)
    frames = [scene(number).resize((64, 48)) for number in (0, 1, 2)]
    pruning = PruningPolicy(keep_tokens=4, method="vision_coverage")
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=True)
    first, swapped = frames, [*frames[2:], *frames[:2]]
    asked = [(first, "What is this?"), (first, "What is this? And where?"), (swapped, "What is this? And where?")]
    async with Engines(tmp_path) as engines:
        for number, parts in enumerate(asked):
            request = GenerationRequest("test", chat(*parts), params, pruning)
            got, expected = await answer(engines.remembers, request), await answer(engines.reads, request)
            assert got.choices[0].tokens == expected.choices[0].tokens
            assert got.prompt.token_ids == expected.prompt.token_ids
            assert (got.prompt.cached_tokens > len(got.prompt.token_ids) // 2) is (number == 1)
