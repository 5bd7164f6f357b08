"""Pictures of prompts that vLLM's front end has read and its engine never got: they are sent once they are needed."""

import asyncio
import contextlib
from dataclasses import replace

import pytest

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import SamplingParams

QUESTION = "Which color does the star have?"


def ids(answer):
    return [token for chunk in answer.chunks for token in chunk.token_ids]


@pytest.mark.parametrize("pruning", [{}, {"keep_tokens": 8}], ids=["whole", "pruned"])
async def test_a_picture_that_was_tokenized_before_is_answered_as_by_the_embedded_engine(engines, ask, answer, pruning):
    request = ask([900 + len(pruning)], QUESTION, pruning=pruning)
    counted = await engines.vllm.tokenize(request)
    given = await answer(engines.vllm, request)
    assert given.prompt.prompt_tokens == len(counted.ids)
    assert given.text == (await answer(engines.reference, request)).text


async def test_what_a_question_keeps_of_a_tokenized_picture_is_told(engines, ask):
    request = ask([920], QUESTION, pruning={"keep_tokens": 8, "return_indices": True})
    await engines.vllm.tokenize(request)
    [image] = (await engines.vllm.prune(request)).images
    assert len(image.indices) == image.kept < image.total


async def test_an_answer_about_a_tokenized_picture_is_scored(engines, ask):
    request = ask([930], QUESTION)
    await engines.vllm.tokenize(request)
    scores = await engines.vllm.score(request, (5, 6))
    assert len(scores.logprobs) == 2


async def test_a_picture_of_a_refused_prompt_is_answered_for_by_the_next(engines, ask, answer):
    request = ask([940], QUESTION)
    with pytest.raises(InvalidRequest, match="context"):
        await answer(
            engines.vllm, replace(request, sampling=SamplingParams(max_tokens=engines.vllm.info.context_length))
        )
    assert ids(await answer(engines.vllm, request))


async def test_a_picture_of_a_client_that_went_away_is_answered_for_by_the_next(engines, ask, answer):
    request = ask([950], QUESTION)
    asked = asyncio.ensure_future(engines.vllm.tokenize(request))
    await asyncio.sleep(0)
    asked.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asked
    assert ids(await answer(engines.vllm, request))
