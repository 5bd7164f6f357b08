"""The vLLM engine keeps the same tokens and gives the same greedy answers as the transformers engine."""

import asyncio

import pytest
import pytest_asyncio

from covervlm.server.demo import model_path
from covervlm.server.engines.base import InvalidRequest
from covervlm.server.engines.transformers import TransformersEngine, TransformersEngineConfig
from covervlm.server.engines.vllm import VllmEngine, VllmEngineConfig

QUESTIONS = ["what color is the circle ?", "how many squares are there ?", "is there a star ?"]
POLICIES = [
    {},
    {"keep_tokens": 8},
    {"keep_tokens": 5, "method": "vision_coverage"},
    {"keep_ratio": 0.25, "method": "divprune"},
]


@pytest_asyncio.fixture(scope="module", params=["demo", "tiny_llava_next", "tiny_qwen"])
async def engines(request):
    path = str(model_path() if request.param == "demo" else request.getfixturevalue(request.param))
    ours = VllmEngine(VllmEngineConfig(path, vllm_args="--enforce-eager"))
    await ours.start()
    reference = TransformersEngine(TransformersEngineConfig(path, threads=1))
    await reference.start()
    yield ours, reference
    await ours.stop()
    await reference.stop()


async def answer(engine, request):
    got = [chunk async for chunk in engine.generate(request)]
    return "".join(chunk.text for chunk in got), got[0].prompt


def requests(ask):
    sizes = [None, (90, 60)]
    return [
        ask([number], question, pruning=policy | {"return_indices": True}, size=sizes[number % 2])
        for number in range(4)
        for question in QUESTIONS
        for policy in POLICIES
    ]


async def test_48_concurrent_greedy_answers_counts_and_indices_are_equal(engines, ask):
    ours, reference = engines
    mixed = requests(ask)
    got = await asyncio.gather(*(answer(ours, request) for request in mixed))
    wanted = [await answer(reference, request) for request in mixed]
    assert [prompt.prompt_tokens for _, prompt in got] == [prompt.prompt_tokens for _, prompt in wanted]
    for (_, mine), (_, theirs) in zip(got, wanted, strict=True):
        assert mine.images[0].indices == theirs.images[0].indices
        assert (mine.images[0].total, mine.images[0].kept) == (theirs.images[0].total, theirs.images[0].kept)
    assert [text for text, _ in got] == [text for text, _ in wanted]


async def test_two_images_have_budgets_of_their_own(engines, ask):
    ours, reference = engines
    for counts in ((8, 3), (100_000, 5)):
        request = ask([1, 2], QUESTIONS[0], pruning={"keep_tokens": counts})
        (mine, prompt), (theirs, wanted) = await answer(ours, request), await answer(reference, request)
        assert [image.kept for image in prompt.images] == [image.kept for image in wanted.images]
        assert mine == theirs


async def test_another_question_selects_anew_and_the_tower_does_not_run_again(engines, ask):
    ours, reference = engines
    before = (await ours._llm.collective_rpc("covervlm_cache"))[0]
    for question in QUESTIONS[:2]:
        request = ask([77], question, pruning={"keep_tokens": 8, "return_indices": True})
        assert (await ours.prune(request)).images[0].indices == (await reference.prune(request)).images[0].indices
    after = (await ours._llm.collective_rpc("covervlm_cache"))[0]
    assert (after[1] - before[1], after[2] - before[2]) == (1, 1)  # a hit, a miss


@pytest.mark.parametrize("policy", [{"coverage": 0.9}, {"keep_tokens": (1, 2)}, {"keep_tokens": 4, "method": "best"}])
async def test_impossible_budgets_are_invalid_requests(engines, ask, policy):
    with pytest.raises(InvalidRequest):
        await answer(engines[0], ask([1], QUESTIONS[0], pruning=policy))


async def test_vllm_metrics_are_collected(engines):
    assert "vllm:prompt_tokens" in {metric.name for metric in engines[0].collect()}
