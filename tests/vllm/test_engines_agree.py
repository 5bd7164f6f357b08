"""The vLLM engine keeps the same tokens and gives the same greedy answers as the transformers engine."""

import asyncio
from dataclasses import replace

import pytest
from chat_bodies import QUESTIONS

from covervlm.server.core.caller import Caller
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import PruningPolicy

POLICIES = [
    {},
    {"keep_tokens": 8},
    {"keep_tokens": 5, "method": "vision_coverage"},
    {"keep_ratio": 0.25, "method": "divprune"},
]


async def test_48_concurrent_greedy_answers_counts_and_indices_are_equal(engines, ask, answer):
    sizes = [None, (90, 60)]
    mixed = [
        ask([number], question, pruning=policy | {"return_indices": True}, size=sizes[number % 2])
        for number in range(4)
        for question in QUESTIONS
        for policy in POLICIES
    ]
    got = await asyncio.gather(*(answer(engines.vllm, request) for request in mixed))
    wanted = [await answer(engines.reference, request) for request in mixed]
    assert [one.prompt.prompt_tokens for one in got] == [one.prompt.prompt_tokens for one in wanted]
    for mine, theirs in zip(got, wanted, strict=True):
        [image], [reference] = mine.prompt.images, theirs.prompt.images
        assert image.indices == reference.indices
        assert (image.total, image.kept, image.method) == (reference.total, reference.kept, reference.method)
        assert image.coverage == pytest.approx(reference.coverage, abs=1e-4)
    assert [one.text for one in got] == [one.text for one in wanted]


async def test_allowed_and_told_tokens_are_the_same(engines, ask, answer):
    whole = await answer(engines.reference, ask([21], QUESTIONS[0], max_tokens=1, logprobs=True, top_logprobs=20))
    top = [one.id for one in whole.chunks[-1].logprobs[0].top]
    sampling = {"allowed_token_ids": (top[9], top[5]), "logprob_token_ids": (top[2], top[0]), "max_tokens": 3}
    request = ask([21], QUESTIONS[0], logprobs=True, top_logprobs=1, ignore_eos=True, **sampling)
    mine, theirs = [
        [entry for chunk in (await answer(engine, request)).chunks for entry in chunk.logprobs]
        for engine in (engines.vllm, engines.reference)
    ]
    assert [entry.id for entry in mine] == [entry.id for entry in theirs]
    assert [one.id for one in mine[0].top] == [one.id for one in theirs[0].top] == [top[0], top[2], top[5]]
    for one, other in zip(mine, theirs, strict=True):
        assert {told.id: told.logprob for told in one.top} == pytest.approx(
            {told.id: told.logprob for told in other.top}, abs=5e-3
        )


async def test_answers_are_scored_alike_only_in_quiet_and_without_a_trace_in_the_prefix_cache(engines, ask, answer):
    request = ask([91], QUESTIONS[0], pruning={"keep_tokens": 8}, max_tokens=12)
    served = await answer(engines.reference, request)
    tokens = [token for chunk in served.chunks for token in chunk.token_ids]
    for policy in (request.pruning, PruningPolicy("none")):
        asked = replace(request, pruning=policy, caller=Caller("shadow"))
        # Beside other requests, which it waits for and is interrupted by.
        others = [answer(engines.vllm, ask([number], QUESTIONS[0])) for number in (92, 93)]
        mine, *_ = await asyncio.gather(engines.vllm.score(asked, tokens), *others)
        theirs = await engines.reference.score(asked, tokens)
        assert mine.choices(tokens) == theirs.choices(tokens)
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=5e-3)
    again = await answer(engines.vllm, replace(request, pruning=PruningPolicy("none")))
    assert again.prompt.cached_tokens == 0


async def test_attention_of_the_cls_token_selects_alike(engines, ask, answer):
    if "cls_attention" not in engines.reference.info.methods:
        pytest.skip("this tower has no CLS token")
    for number, method in ((5, "cls_attention"), (6, "cdpruner"), (6, "random")):
        request = ask([number], QUESTIONS[0], pruning={"keep_tokens": 7, "method": method, "return_indices": True})
        mine, theirs = await answer(engines.vllm, request), await answer(engines.reference, request)
        assert mine.prompt.images[0].indices == theirs.prompt.images[0].indices
        assert mine.text == theirs.text


async def test_two_images_have_budgets_of_their_own(engines, ask, answer):
    for counts in ((8, 3), (100_000, 5)):
        request = ask([1, 2], QUESTIONS[0], pruning={"keep_tokens": counts})
        mine, theirs = await answer(engines.vllm, request), await answer(engines.reference, request)
        assert [image.kept for image in mine.prompt.images] == [image.kept for image in theirs.prompt.images]
        assert mine.prompt.prompt_tokens == theirs.prompt.prompt_tokens
        assert mine.text == theirs.text


async def test_another_question_selects_anew_and_the_tower_does_not_run_again(engines, ask):
    """On the first scene for which two questions keep different tokens."""
    for number in range(70, 90):
        asked = [ask([number], q, pruning={"keep_tokens": 8, "return_indices": True}) for q in QUESTIONS[:2]]
        wanted = [(await engines.reference.prune(request)).images[0].indices for request in asked]
        if wanted[0] != wanted[1]:
            break
    before = await cache_figures(engines.vllm)
    assert [(await engines.vllm.prune(request)).images[0].indices for request in asked] == wanted
    after = await cache_figures(engines.vllm)
    assert wanted[0] != wanted[1]
    assert (after[1] - before[1], after[2] - before[2]) == (1, 1)  # a hit, a miss


async def test_what_vllm_keeps_of_prompts_is_apart_by_owner(engines, ask):
    _, prompts = engines.vllm._loaded()
    callers = (Caller("me"), Caller("you"), Caller())
    asked = [replace(ask([1], QUESTIONS[0]), caller=caller) for caller in callers]
    assert [(await prompts.render(request)).engine_input.get("cache_salt") for request in asked] == ["me", "you", None]


async def test_the_same_question_again_neither_selects_nor_looks_again(engines, ask, answer):
    request = ask([78], QUESTIONS[0], pruning={"keep_tokens": 8, "return_indices": True})
    first = await answer(engines.vllm, request)
    before = await cache_figures(engines.vllm)
    again = await answer(engines.vllm, request)
    assert await cache_figures(engines.vllm) == before
    assert (again.text, again.prompt.images) == (first.text, first.prompt.images)


async def cache_figures(engine):
    return (await engine._llm.collective_rpc("covervlm_cache"))[0]


@pytest.mark.parametrize("policy", [{"coverage": 0.9}, {"keep_tokens": (1, 2)}, {"keep_tokens": 4, "method": "best"}])
async def test_impossible_budgets_are_invalid_requests(engines, ask, answer, policy):
    with pytest.raises(InvalidRequest):
        await answer(engines.vllm, ask([1], QUESTIONS[0], pruning=policy))
