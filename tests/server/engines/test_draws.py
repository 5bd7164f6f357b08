"""Batched draws beside transformers' own warpers, row by row, and a race in plain Python."""

import itertools
import math
import random

import pytest
import torch
from scipy import stats
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from covervlm.server.engines.embedded.draws import Truncation, draw

GRID = list(itertools.product([0.3, 1.0, 1.7], [0.0, 0.02, 1.0], [0, 1, 40, 1500], [0.05, 0.9, 0.999, 1.0]))


def arrival(token: int, seed: int) -> float:
    """When a token of rate 1 arrives: MurmurHash3's last mix of both, as a number in (0, 1), to an exponential time."""
    mixed = (token * 0x9E3779B1 + seed) % 2**32
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        mixed = (mixed ^ mixed >> shift) * factor % 2**32
    return -math.log1p(-(mixed % 2**31 + 0.5) / 2**31)


def slow(logits: torch.Tensor, temperature: float, min_p: float, top_k: int, top_p: float, seed: int) -> int:
    """One row through transformers' warpers, and the token that arrives first."""
    warpers = [TemperatureLogitsWarper(temperature)]
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    scores = logits.double()[None]
    for warper in warpers:
        scores = warper(torch.empty(1, 0, dtype=torch.long), scores)
    probabilities = scores[0].softmax(-1).tolist()
    return max(range(len(probabilities)), key=lambda token: probabilities[token] / arrival(token, seed))


def drawn(logits: torch.Tensor, rows: list[tuple[float, float, int, float]], seeds: list[int]) -> list[int]:
    size = logits.shape[1]
    temperature, min_p, top_k, top_p = zip(*rows, strict=True)
    truncation = Truncation(
        temperature=torch.tensor(temperature, dtype=torch.float64),
        min_p=torch.tensor(min_p, dtype=torch.float64),
        top_k=torch.tensor([min(k, size) if k else size for k in top_k]),
        top_p=torch.tensor(top_p, dtype=torch.float64),
    )
    return draw(logits, truncation, torch.tensor(seeds, dtype=torch.int)).tolist()


@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0], ids=["flat", "usual", "peaked"])
@pytest.mark.parametrize("size", [7, 3000, 6000])
def test_every_row_is_drawn_as_transformers_warpers_would(size, spread):
    """Vocabularies smaller and larger than the first and the second candidates; flat rows need the whole sorted."""
    rng = torch.Generator().manual_seed(size)
    values = torch.erfinv(torch.linspace(-0.9999, 0.9999, size)) * spread  # all different, so that ranks are certain
    logits = torch.stack([values[torch.randperm(size, generator=rng)] for _ in GRID])
    seeds = [random.Random(row).getrandbits(31) for row in range(len(GRID))]
    expected = [slow(*each) for each in zip(logits, *zip(*GRID, strict=True), seeds, strict=True)]
    assert drawn(logits, GRID, seeds) == expected


def test_a_token_that_is_ruled_out_is_never_drawn():
    logits = torch.full((len(GRID), 2000), -torch.inf)
    logits[:, [5, 1700]] = torch.tensor([1.0, 0.5])
    for seed in [0, 2**31 - 1, *(random.Random(0).getrandbits(31) for _ in range(100))]:
        assert set(drawn(logits, GRID, [seed] * len(GRID))) <= {5, 1700}


def test_of_tokens_as_likely_as_the_last_of_top_k_all_stay():
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    got = {drawn(logits, [(1.0, 0.0, 2, 1.0)], [random.Random(number).getrandbits(31)])[0] for number in range(200)}
    assert got == {0, 1, 2, 3}


@pytest.mark.parametrize("row", [(1.0, 0.0, 1, 1.0), (1.0, 0.5, 0, 1.0), (1.0, 0.0, 0, 0.9999), (1.0, 0.0, 0, 1.0)])
def test_equal_logits_of_a_whole_vocabulary_are_all_drawn_as_often(row):
    """As chi-squared says of 10,000 draws of 1,000 tokens."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(1000)
    for _ in range(20):
        seeds = torch.empty(500, dtype=torch.int).random_(generator=generator)
        counts += torch.bincount(
            torch.tensor(drawn(torch.zeros(500, 1000), [row] * 500, seeds.tolist())), minlength=1000
        )
    assert stats.chisquare(counts).pvalue > 1e-3


def test_tokens_are_drawn_as_often_as_they_are_likely():
    rng = torch.Generator().manual_seed(1)
    logits = torch.randn(40, generator=rng) * 1.5
    seeds = torch.empty(20_000, dtype=torch.int).random_(generator=rng).tolist()
    counts = torch.bincount(
        torch.tensor(drawn(logits.expand(20_000, 40), [(0.8, 0.0, 0, 1.0)] * 20_000, seeds)), minlength=40
    )
    expected = (logits.double() / 0.8).softmax(-1) * 20_000
    assert stats.chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize("row", [(1.0, 0.0, 0, 1.0), (0.2, 0.0, 0, 0.9), (1.3, 0.0, 50, 1.0)])
def test_last_digits_of_the_logits_do_not_decide_what_is_drawn(row):
    """A batch's size changes them; a number looked up in a running sum in single precision found others here."""
    rng = torch.Generator().manual_seed(9)
    logits = torch.randn(150_000, generator=rng)
    error = torch.randn(150_000, generator=rng) * 1e-6
    for _ in range(2):
        seeds = torch.empty(64, dtype=torch.int).random_(generator=rng).tolist()
        expected = drawn(logits.expand(64, -1), [row] * 64, seeds)
        assert drawn((logits + error).expand(64, -1), [row] * 64, seeds) == expected
