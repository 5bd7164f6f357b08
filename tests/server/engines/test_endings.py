"""How answers end and what of the end is shown, with vLLM's parameters, on the demo model."""

import pytest

from covervlm.server.core.errors import InvalidRequest

QUESTION = "Describe the image."


async def plain_answer(engine, ask, answer, scene, **sampling):
    return await answer(engine, ask(scene(0), QUESTION, **{"max_tokens": 24, "logprobs": True} | sampling))


def ids(engine, tokens):
    return [engine._adapter.tokenizer.convert_tokens_to_ids(token) for token in tokens]


async def test_the_end_waits_for_min_tokens(engine, ask, answer, scene):
    short = await answer(engine, ask(scene(0), "What color is the star?"))
    asked = short.choices[0].count + 5
    longer = await answer(engine, ask(scene(0), "What color is the star?", min_tokens=asked, max_tokens=60))
    assert longer.choices[0].count >= asked
    assert longer.text.startswith(short.text)


async def test_a_stop_string_counts_from_min_tokens_on(engine, ask, answer, scene):
    whole = await plain_answer(engine, ask, answer, scene)
    stop = whole.choices[0].tokens[2].strip()
    early = await plain_answer(engine, ask, answer, scene, stop=(stop,))
    late = await plain_answer(engine, ask, answer, scene, stop=(stop,), min_tokens=3)
    assert early.text == whole.text[: whole.text.index(stop)]
    assert len(late.text) > len(early.text)


async def test_a_stop_token_ends_the_answer_and_shows_only_where_asked(engine, ask, answer, scene):
    whole = await plain_answer(engine, ask, answer, scene)
    tokens = [entry.token for chunk in whole.chunks for entry in chunk.logprobs]
    tokenizer = engine._adapter.tokenizer
    stop = tokenizer.encode(tokens[3], add_special_tokens=False)[-1]
    assert tokenizer.decode([stop]).strip() == tokens[3].strip()
    hidden = await plain_answer(engine, ask, answer, scene, stop_token_ids=(stop,), ignore_eos=True)
    shown = await plain_answer(
        engine, ask, answer, scene, stop_token_ids=(stop,), include_stop_str_in_output=True, ignore_eos=True
    )
    assert hidden.choices[0].finish_reason == shown.choices[0].finish_reason == "stop"
    assert shown.text == hidden.text + tokens[3]
    assert whole.text.startswith(shown.text)


async def test_a_stop_string_shows_where_asked(engine, ask, answer, scene):
    whole = await plain_answer(engine, ask, answer, scene)
    word = whole.text.split()[3]
    got = await plain_answer(engine, ask, answer, scene, stop=(word,), include_stop_str_in_output=True)
    assert got.text == whole.text[: whole.text.index(word) + len(word)]


async def test_special_tokens_show_where_asked(engine, ask, answer, scene):
    eos = engine._adapter.tokenizer.eos_token
    asked = {"include_stop_str_in_output": True, "skip_special_tokens": False}
    hidden = await answer(engine, ask(scene(0), "What color is the star?", include_stop_str_in_output=True))
    shown = await answer(engine, ask(scene(0), "What color is the star?", **asked))
    assert shown.text == hidden.text + eos


async def test_a_bad_word_does_not_appear(engine, ask, answer, scene):
    whole = await plain_answer(engine, ask, answer, scene)
    word = whole.text.split()[1]
    assert word not in (await plain_answer(engine, ask, answer, scene, bad_words=(word,))).text.split()


async def test_only_allowed_tokens_come_and_the_told_ones_have_their_own_log_probabilities(engine, ask, answer, scene):
    whole = await plain_answer(engine, ask, answer, scene, top_logprobs=20)
    [first, *_] = [entry for chunk in whole.chunks for entry in chunk.logprobs]
    unlikely, likely = first.top[7], first.top[2]
    got = await plain_answer(
        engine, ask, answer, scene, allowed_token_ids=(unlikely.id,), logprob_token_ids=(likely.id,), max_tokens=3
    )
    entries = [entry for chunk in got.chunks for entry in chunk.logprobs]
    assert [entry.id for entry in entries] == [unlikely.id] * 3
    assert [(one.id, one.logprob) for one in entries[0].top] == [
        (one.id, pytest.approx(one.logprob, abs=1e-5)) for one in (likely, unlikely)
    ]


UNKNOWN = [{"logit_bias": {10**6: 1.0}}] + [
    {name: (10**6,)} for name in ("stop_token_ids", "allowed_token_ids", "logprob_token_ids")
]


@pytest.mark.parametrize("sampling", UNKNOWN)
async def test_tokens_that_the_model_does_not_have_are_refused(engine, ask, answer, scene, sampling):
    with pytest.raises(InvalidRequest, match="no token 1000000") as refused:
        await plain_answer(engine, ask, answer, scene, **sampling)
    assert refused.value.param in sampling
