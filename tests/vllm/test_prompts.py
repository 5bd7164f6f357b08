"""Texts, token ids and shaped chats: both engines read the same tokens and find them equally likely."""

import math

import pytest

from covervlm.server.core.caller import Caller
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import GenerationRequest, Message, SamplingParams, TemplateOptions, TextPrompt

TEXT = "USER: what color is the star? ASSISTANT:"
CHAT = (Message("user", ("what color is the star?",)), Message("assistant", ("the star",)))
PROMPTS = {
    "a text": (TextPrompt(TEXT), TemplateOptions()),
    "without special tokens": (TextPrompt(TEXT, special_tokens=False), TemplateOptions()),
    "ids": (TextPrompt(tuple(range(5, 25))), TemplateOptions()),
    "a continued chat": (CHAT, TemplateOptions(False, True)),
    "a chat without an answer": (CHAT, TemplateOptions(add_generation_prompt=False)),
}


def same(mine, theirs):
    """Entries of two engines, whose numbers differ in their last digits; equals may change places."""
    assert [entry.id for entry in mine] == [entry.id for entry in theirs]
    assert math.isnan(mine[0].logprob)
    assert math.isnan(theirs[0].logprob)
    for one, other in zip(mine[1:], theirs[1:], strict=True):
        assert (one.token, one.bytes, one.special) == (other.token, other.bytes, other.special)
        assert [top.logprob for top in one.top] == pytest.approx([top.logprob for top in other.top], abs=2e-3)
        assert [top.rank for top in one.top] == [top.rank for top in other.top]
        assert one.logprob == pytest.approx(other.logprob, abs=2e-3)


@pytest.mark.parametrize("kind", PROMPTS)
async def test_both_engines_read_the_same_tokens_and_score_them_alike(engines, answer, kind):
    prompt, template = PROMPTS[kind]
    sampling = SamplingParams(temperature=0, max_tokens=6, prompt_logprobs=2, ignore_eos=True)
    request = GenerationRequest("test", prompt, sampling, template=template)
    mine, theirs = [await answer(engine, request) for engine in (engines.vllm, engines.reference)]
    assert list(mine.prompt.token_ids) == list(theirs.prompt.token_ids)
    same(mine.prompt.logprobs, theirs.prompt.logprobs)
    ids = [[token for chunk in got.chunks for token in chunk.token_ids] for got in (mine, theirs)]
    assert ids[0] == ids[1]
    tokens = [await engine.tokenize(request) for engine in (engines.vllm, engines.reference)]
    assert tokens[0] == tokens[1]
    texts = [await engine.detokenize(tokens[0].ids, Caller()) for engine in (engines.vllm, engines.reference)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("pruning", [{}, {"keep_tokens": 8}])
async def test_a_chat_with_an_image_is_counted_and_scored_as_it_is_read(engines, ask, answer, pruning):
    request = ask([0], "what color is the star ?", pruning=pruning, prompt_logprobs=1, max_tokens=2)
    mine, theirs = [await answer(engine, request) for engine in (engines.vllm, engines.reference)]
    assert list(mine.prompt.token_ids) == list(theirs.prompt.token_ids)
    # Each engine has its own image processor and tower, so numbers after a picture differ more than those of a text.
    # Entries that stood one place off would be much further apart.
    values = [[entry.logprob for entry in got.prompt.logprobs[1:]] for got in (mine, theirs)]
    apart = [abs(one - other) for one, other in zip(*values, strict=True)]
    assert sum(apart) / len(apart) < 0.2
    off = [abs(one - other) for one, other in zip(values[0][1:], values[1], strict=False)]
    assert sum(off) > 5 * sum(apart)
    for engine in (engines.vllm, engines.reference):
        assert list((await engine.tokenize(request)).ids) == list(mine.prompt.token_ids)


async def test_what_is_no_prompt_is_refused_alike(engines):
    for prompt in (TextPrompt((1, 10**6)), TextPrompt(()), TextPrompt((1,) * 10**5)):
        told = []
        for engine in (engines.vllm, engines.reference):
            with pytest.raises(InvalidRequest) as refused:
                await engine.tokenize(GenerationRequest("test", prompt))
            told.append((refused.value.param, refused.value.code))
        assert told[0] == told[1]
