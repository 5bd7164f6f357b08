import collections

import pytest
import torch
from transformers import AutoTokenizer, NoBadWordsLogitsProcessor, SequenceBiasLogitsProcessor

from covervlm.server.core.errors import EngineError
from covervlm.server.core.generation import SamplingParams
from covervlm.server.demo import model_path
from covervlm.server.engines.embedded.sampling import Bans, Bias, OccurrencePenalty, Sampler, bad_words, choose

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def sample(sampler: Sampler, logits: torch.Tensor) -> int:
    """One token, from a batch of one row."""
    token = choose({0: sampler}, logits[None])[0]
    if isinstance(token, Exception):
        raise token
    return token


def draw(params: SamplingParams, count: int, prompt: tuple[int, ...] = ()) -> list[int]:
    sampler = Sampler(params, prompt, choice=0)
    return [sample(sampler, LOGITS) for _ in range(count)]


def test_frequencies_follow_the_softmax_at_the_given_temperature():
    counts = collections.Counter(draw(SamplingParams(temperature=0.7, seed=1), 20_000))
    expected = (LOGITS / 0.7).softmax(-1)
    for token, probability in enumerate(expected.tolist()):
        assert counts[token] / 20_000 == pytest.approx(probability, abs=0.012)


def test_top_k_top_p_and_min_p_cut_the_unlikely():
    assert set(draw(SamplingParams(top_k=2, seed=1), 500)) == {0, 1}
    # Probabilities are 0.56, 0.21, 0.12, ...: 0.7 needs the first two.
    assert set(draw(SamplingParams(top_p=0.7, seed=1), 500)) == {0, 1}
    assert set(draw(SamplingParams(min_p=0.2, seed=1), 500)) == {0, 1, 2}


def test_temperature_zero_is_the_argmax():
    assert draw(SamplingParams(temperature=0), 5) == [0] * 5
    assert SamplingParams(temperature=0).is_plain_argmax
    assert not SamplingParams(temperature=0, frequency_penalty=1.2).is_plain_argmax


def test_penalties_are_openais_formula():
    ids = torch.tensor([[9, 9, 1, 1, 3]])
    scores = torch.zeros(1, 10)
    got = OccurrencePenalty(prompt_length=2, presence=0.5, frequency=0.25)(ids, scores)[0]
    expected = torch.zeros(10)
    expected[1], expected[3] = -0.5 - 2 * 0.25, -0.5 - 0.25
    torch.testing.assert_close(got, expected)


def test_a_frequency_penalty_makes_greedy_decoding_take_turns():
    assert draw(SamplingParams(temperature=0, frequency_penalty=1.2), 3) == [0, 1, 0]


def test_the_repetition_penalty_counts_the_prompt():
    assert draw(SamplingParams(temperature=0, repetition_penalty=4.0), 1, prompt=(0,)) == [1]


def test_a_seed_decides_the_draws_and_no_seed_does_not():
    seeded = SamplingParams(temperature=1.5, seed=11)
    assert draw(seeded, 30) == draw(seeded, 30)
    assert draw(seeded, 30) != draw(SamplingParams(temperature=1.5, seed=12), 30)
    assert draw(SamplingParams(temperature=1.5), 60) != draw(SamplingParams(temperature=1.5), 60)


@pytest.mark.parametrize("seed", [-1, 0, 2**63 - 1, 2**70])
def test_any_integer_is_a_seed(seed):
    assert len(draw(SamplingParams(seed=seed), 1)) == 1


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-300, 5e-324])
def test_temperatures_that_would_overflow_are_zero(temperature):
    assert draw(SamplingParams(temperature=temperature, seed=1), 20) == [0] * 20


@pytest.mark.parametrize("penalty", [0.01, 100.0])
def test_the_strongest_penalties_at_the_lowest_temperature_still_draw(penalty):
    params = SamplingParams(temperature=1e-5, repetition_penalty=penalty, top_p=0.5, top_k=10**30, min_p=1.0, seed=1)
    sampler = Sampler(params, (0, 1), choice=0)
    assert sample(sampler, torch.tensor([3e4, -3e4, 1.0])) in (0, 1, 2)


def test_a_row_is_drawn_as_if_it_were_alone():
    params = [
        SamplingParams(temperature=0),
        SamplingParams(temperature=1.3, seed=1),
        SamplingParams(top_p=0.6, seed=2),
        SamplingParams(temperature=0, logit_bias={4: 50.0}),
        SamplingParams(top_k=3, min_p=0.1, presence_penalty=1.5, seed=3),
    ]
    rows = torch.stack([LOGITS.roll(shift) for shift in range(len(params))])
    together = [Sampler(one, (), choice=0) for one in params]
    alone = [Sampler(one, (), choice=0) for one in params]
    for _ in range(20):
        chosen = choose(dict(enumerate(together)), rows)
        assert [chosen[row] for row in range(len(rows))] == [sample(*pair) for pair in zip(alone, rows, strict=True)]


def test_a_row_without_a_token_fails_alone():
    banned = Sampler(SamplingParams(bad_words=("x",)), (), choice=0, banned=[[i] for i in range(len(LOGITS))])
    chosen = choose({0: banned, 2: Sampler(SamplingParams(top_k=1), (), choice=0)}, LOGITS.repeat(3, 1))
    assert isinstance(chosen[0], EngineError)
    assert chosen[2] == 0


# vLLM's further parameters, beside transformers' own processors.


def through(processor, generated: list[int], prompt: tuple[int, ...] = ()) -> torch.Tensor:
    return processor(torch.tensor([[*prompt, *generated]]), LOGITS[None].clone())[0]


@pytest.mark.parametrize("generated", [[], [1], [1, 2], [2, 1], [1, 1, 2], [4, 3, 1, 2]])
def test_bans_are_transformers_bad_words(generated):
    sequences = [[4], [1, 2], [1, 2, 3], [2, 0]]
    reference = NoBadWordsLogitsProcessor(sequences, eos_token_id=99)
    # Behind a prompt: where a sequence is longer than all tokens so far, older releases overlook that it may end now.
    prompt = (5, 5, 5)
    torch.testing.assert_close(through(Bans(3, sequences), generated, prompt), through(reference, generated, prompt))


def test_bans_look_at_the_completion_alone():
    assert through(Bans(1, [[1, 2]]), [], prompt=(1,)).isfinite().all()
    assert through(Bans(1, [[1, 2]]), [1], prompt=(0,))[2] == -torch.inf


def test_the_bias_is_transformers_sequence_bias():
    bias = {1: 2.5, 3: -100.0}
    reference = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])
    torch.testing.assert_close(through(Bias(bias), [1, 2]), through(reference, [1, 2]))


def test_a_bias_decides_a_greedy_answer():
    params = SamplingParams(temperature=0, logit_bias={4: 50.0})
    assert not params.is_plain_argmax
    assert draw(params, 3) == [4, 4, 4]


def test_a_greedy_answer_takes_the_likeliest_of_the_allowed_tokens():
    params = SamplingParams(temperature=0, allowed_token_ids=(5, 3, 4))
    assert not params.is_plain_argmax
    assert draw(params, 3) == [3, 3, 3]


def test_draws_come_from_the_allowed_tokens_alone_in_their_proportions():
    counts = collections.Counter(draw(SamplingParams(allowed_token_ids=(1, 3), seed=1), 20_000))
    expected = LOGITS[[1, 3]].softmax(-1).tolist()
    assert [counts[1] / 20_000, counts[3] / 20_000] == pytest.approx(expected, abs=0.012)


def test_nothing_allowed_that_is_not_banned_is_an_error_for_the_caller():
    params = SamplingParams(bad_words=("x",), allowed_token_ids=(2,))
    with pytest.raises(EngineError, match="allowed_token_ids"):
        sample(Sampler(params, (), choice=0, banned=[[2]]), LOGITS)


def test_the_end_is_held_back_for_min_tokens_and_no_longer():
    sampler = Sampler(SamplingParams(temperature=0, min_tokens=3), (7, 8), choice=0, end_ids={0})
    assert [sample(sampler, LOGITS) for _ in range(5)] == [1, 1, 1, 0, 0]


def test_no_token_left_is_an_error_for_the_caller():
    sampler = Sampler(SamplingParams(bad_words=("x",)), (), choice=0, banned=[[i] for i in range(len(LOGITS))])
    with pytest.raises(EngineError, match="No token is left"):
        sample(sampler, LOGITS)


def test_bad_words_are_spelt_as_they_begin_a_text_and_as_they_follow_a_space():
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    [opening], [inside] = ([tokenizer.encode(text, add_special_tokens=False)] for text in ("circle", " circle"))
    assert opening != inside
    assert bad_words(["circle"], tokenizer) == bad_words([" circle"], tokenizer) == [opening, inside]
    assert bad_words([], tokenizer) == []
