"""Batched draws beside transformers' own warpers, row by row, and a running sum in plain Python."""

import itertools
import random

import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from covervlm.server.engines.embedded.draws import Truncation, draw

GRID = list(itertools.product([0.3, 1.0, 1.7], [0.0, 0.02, 1.0], [0, 1, 40, 1500], [0.05, 0.9, 0.999, 1.0]))


def slow(logits: torch.Tensor, temperature: float, min_p: float, top_k: int, top_p: float, uniform: float) -> int:
    """One row through transformers' warpers, and the token at which the running sum passes the random number."""
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
    order = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])
    if not min_p and (not top_k or top_k >= len(logits)) and top_p == 1:
        order = range(len(probabilities))
    total = 0.0
    for token in order:
        total += probabilities[token]
        if total > uniform:
            return token
    raise AssertionError("probabilities sum to less than 1")


def drawn(logits: torch.Tensor, rows: list[tuple[float, float, int, float]], uniforms: list[float]) -> list[int]:
    size = logits.shape[1]
    temperature, min_p, top_k, top_p = zip(*rows, strict=True)
    truncation = Truncation(
        temperature=torch.tensor(temperature, dtype=torch.float64),
        min_p=torch.tensor(min_p, dtype=torch.float64),
        top_k=torch.tensor([min(k, size) if k else size for k in top_k]),
        top_p=torch.tensor(top_p, dtype=torch.float64),
    )
    return draw(logits, truncation, torch.tensor(uniforms, dtype=torch.float64)).tolist()


@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0], ids=["flat", "usual", "peaked"])
@pytest.mark.parametrize("size", [7, 3000, 6000])
def test_every_row_is_drawn_as_transformers_warpers_would(size, spread):
    """Vocabularies smaller and larger than the first and the second candidates; flat rows need the whole sorted."""
    rng = torch.Generator().manual_seed(size)
    values = torch.erfinv(torch.linspace(-0.9999, 0.9999, size)) * spread  # all different, so that ranks are certain
    logits = torch.stack([values[torch.randperm(size, generator=rng)] for _ in GRID])
    uniforms = [random.Random(row).random() for row in range(len(GRID))]
    expected = [slow(*each) for each in zip(logits, *zip(*GRID, strict=True), uniforms, strict=True)]
    assert drawn(logits, GRID, uniforms) == expected


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_a_token_that_is_ruled_out_is_never_drawn(uniform):
    logits = torch.full((len(GRID), 2000), -torch.inf)
    logits[:, [5, 1700]] = torch.tensor([1.0, 0.5])
    assert set(drawn(logits, GRID, [uniform] * len(GRID))) <= {5, 1700}


def test_of_tokens_as_likely_as_the_last_of_top_k_all_stay():
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    got = {drawn(logits, [(1.0, 0.0, 2, 1.0)], [uniform])[0] for uniform in torch.linspace(0, 0.9999, 200).tolist()}
    assert got == {0, 1, 2, 3}


def test_equal_logits_of_a_whole_vocabulary_are_all_drawn():
    rows = [(1.0, 0.0, 1, 1.0), (1.0, 0.5, 0, 1.0), (1.0, 0.0, 0, 0.9999)]
    for row in rows:
        got = drawn(torch.zeros(500, 2500), [row] * 500, [(number + 0.5) / 500 for number in range(500)])
        assert len(set(got)) == 500
