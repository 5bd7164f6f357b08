import collections

import pytest
import torch

from covervlm.server.engines.base import SamplingParams
from covervlm.server.engines.sampling import OccurrencePenalty, Sampler

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def draw(params: SamplingParams, count: int, prompt: tuple[int, ...] = ()) -> list[int]:
    sampler = Sampler(params, prompt, choice=0)
    return [sampler.sample(LOGITS) for _ in range(count)]


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
    assert Sampler(SamplingParams(temperature=0), (), 0).is_plain_argmax


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
    assert sampler.sample(torch.tensor([3e4, -3e4, 1.0])) in (0, 1, 2)
