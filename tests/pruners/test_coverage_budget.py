"""Adaptive budgets: the smallest prefix of the picks that reaches a share of the objective."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from covervlm.pruners import PruneInput, get_pruner, pruner_names
from covervlm.pruners.registry import pruner_class

NESTED = [name for name in pruner_names() if pruner_class(name).nested]


def make_input(seed=0, n=60, m=4):
    generator = torch.Generator().manual_seed(seed)
    return PruneInput(
        tokens=torch.randn(n, 16, generator=generator),
        features=torch.randn(n, 12, generator=generator),
        text=torch.randn(m, 16, generator=generator),
        cls_attention=torch.rand(n, generator=generator),
        seed=seed,
    )


every_nested_method = pytest.mark.parametrize("name", NESTED)


@every_nested_method
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.99, 1.0])
def test_the_budget_is_the_smallest_that_reaches_the_share(name, share):
    image, pruner = make_input(), get_pruner(name)
    (selection,) = pruner.choose_for_coverage([image], share)
    fixed = [pruner.choose([image], k)[0] for k in range(1, 61)]
    smallest = next(one for one in fixed if one.coverage >= share - 1e-9)
    assert selection.indices.tolist() == smallest.indices.tolist()
    assert selection.coverage == pytest.approx(smallest.coverage, abs=1e-9)


@every_nested_method
def test_picks_are_nested_and_coverage_grows_with_the_budget(name):
    image, pruner = make_input(3), get_pruner(name)
    fixed = [pruner.choose([image], k)[0] for k in range(1, 61)]
    for small, large in pairwise(fixed):
        assert set(small.indices.tolist()) < set(large.indices.tolist())
        assert small.coverage <= large.coverage


def test_gains_of_mmtok_never_grow():
    """Submodularity: what a pick adds shrinks from pick to pick."""
    image, pruner = make_input(5), get_pruner("mmtok")
    reached = torch.tensor([0.0] + [pruner.choose([image], k)[0].coverage for k in range(1, 61)])
    assert (reached.diff().diff() <= 1e-6).all()


@every_nested_method
def test_min_and_max_tokens_limit_the_count(name):
    image, pruner = make_input(), get_pruner(name)
    assert len(pruner.choose_for_coverage([image], 0.01, min_tokens=12)[0].indices) == 12
    assert len(pruner.choose_for_coverage([image], 1.0, max_tokens=7)[0].indices) == 7
    assert len(pruner.choose_for_coverage([image], 0.5, min_tokens=9, max_tokens=9)[0].indices) == 9
    assert len(pruner.choose_for_coverage([image], 0.5, min_tokens=60)[0].indices) == 60
    clipped = pruner.choose_for_coverage([image], 1.0, max_tokens=7)[0]
    assert clipped.indices.tolist() == pruner.choose([image], 7)[0].indices.tolist()
    assert clipped.coverage == pytest.approx(pruner.choose([image], 7)[0].coverage, abs=1e-9)


@every_nested_method
def test_full_coverage_is_reached_without_padding(name):
    allowed = torch.arange(60) % 2 == 0
    (selection,) = get_pruner(name).choose_for_coverage([replace(make_input(), allowed=allowed)], 1.0)
    assert (selection.indices % 2 == 0).all()
    assert selection.coverage == pytest.approx(1.0)


@every_nested_method
def test_a_ragged_batch_equals_its_inputs_one_by_one_for_a_share(name):
    images, pruner = [make_input(i, n=5 + 7 * i, m=i % 3) for i in range(6)], get_pruner(name)
    for image, batched in zip(images, pruner.choose_for_coverage(images, 0.8), strict=True):
        assert batched.indices.tolist() == pruner.choose_for_coverage([image], 0.8)[0].indices.tolist()


@pytest.mark.parametrize("name", sorted(set(pruner_names()) - set(NESTED)))
def test_methods_without_an_order_refuse_a_coverage_budget(name):
    with pytest.raises(ValueError, match="picks in no order"):
        get_pruner(name).choose_for_coverage([make_input()], 0.5)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.1, float("nan")])
def test_impossible_shares_are_refused(share):
    with pytest.raises(ValueError, match="coverage must be in"):
        get_pruner("mmtok").choose_for_coverage([make_input()], share)


@pytest.mark.parametrize("bounds", [{"min_tokens": 0}, {"max_tokens": 0}, {"min_tokens": 5, "max_tokens": 4}])
def test_impossible_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match=r"keep must be|min_tokens 5 exceeds"):
        get_pruner("mmtok").choose_for_coverage([make_input()], 0.5, **bounds)
