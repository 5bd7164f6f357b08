"""Hold-outs keep every class learnable, figures are those of plain counting."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from covervlm.server.clip.holdout import MANY, Share, folds, gain, held_out, score

label_lists = st.lists(st.integers(0, 6), min_size=1, max_size=60)


@given(label_lists, st.integers(0, 5))
def test_each_fold_takes_about_a_fifth_of_every_class_and_never_all_of_one(values, seed):
    labels = torch.tensor(values)
    dealt = folds(labels, seed=seed)
    for label in set(values):
        own = dealt[labels == label]
        if len(own) == 1:
            assert own.item() == -1
            continue
        counts = torch.bincount(own, minlength=5)
        assert int(own.min()) >= 0
        assert int(counts.max()) - int(counts.min()) <= 1
        assert int(counts.max()) < len(own)
    sizes = torch.bincount(dealt[dealt >= 0], minlength=5)
    assert int(sizes.max()) - int(sizes.min()) <= 1


@given(label_lists)
def test_few_examples_are_each_held_out_once_but_those_alone_in_their_class(values):
    labels = torch.tensor(values)
    alone = torch.bincount(labels)[labels] == 1
    if alone.all():
        with pytest.raises(ValueError, match="give some class a second one"):
            list(held_out(labels, seed=0))
        return
    parts = list(held_out(labels, seed=0))
    for learn, judge in parts:
        assert sorted([*learn.tolist(), *judge.tolist()]) == list(range(len(labels)))
        assert set(labels[learn].tolist()) == set(values)
    assert sorted(torch.cat([judge for _, judge in parts]).tolist()) == (~alone).nonzero().flatten().tolist()


def test_many_examples_are_held_out_once_and_the_seed_says_which():
    labels = torch.arange(MANY) % 10
    (_, one), *rest = held_out(labels, seed=1)
    assert rest == []
    assert len(one) == MANY // 5
    assert torch.bincount(labels[one]).tolist() == [MANY // 50] * 10
    (_, again), (_, other) = (next(held_out(labels, seed=seed)) for seed in (1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (3, 7), (190, 200), (0, 50)])
def test_intervals_are_wilsons(right, count):
    theirs = binomtest(right, count).proportion_ci(0.95, "wilson")
    assert Share(right, count).interval == pytest.approx((theirs.low, theirs.high), abs=1e-4)


def test_figures_are_those_of_counting():
    labels, answers = torch.tensor([0, 0, 0, 1, 1, 3]), torch.tensor([0, 1, 1, 1, 0, 3])
    found = score(answers, labels, torch.tensor([5, 5, 5, 5, 9, 9]), classes=4)
    assert found.accuracy == Share(3, 6)
    assert found.classes == [Share(1, 3), Share(1, 2), Share(0, 0), Share(1, 1)]
    assert found.class_mean == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)
    assert found.groups == {5: Share(2, 4), 9: Share(1, 2)}
    assert found.worst_group == 0.5
    assert found.confusions == [(0, 1, 2), (1, 0, 1)]
    assert score(answers, labels, None, classes=4).worst_group == pytest.approx(1 / 3)


def test_intervals_of_gains_hold_the_true_gain_as_often_as_they_say():
    generator = torch.Generator().manual_seed(0)
    held, draws, m = 0, 2000, 60
    chances = torch.tensor([0.55, 0.25, 0.10, 0.10])  # both right, the better alone, the other alone, none
    for outcome in torch.multinomial(chances, draws * m, replacement=True, generator=generator).view(draws, m):
        found, (low, high) = gain(outcome <= 1, (outcome == 0) | (outcome == 2))
        assert low <= found <= high
        held += low <= 0.15 <= high
    assert 0.93 <= held / draws <= 0.98


def test_gains_are_the_others_losses_and_none_of_equals():
    one = torch.tensor([True, True, False, True, False, True])
    other = torch.tensor([True, False, False, True, True, False])
    found, (low, high) = gain(one, other)
    assert found == pytest.approx(1 / 6)
    back, (other_low, other_high) = gain(other, one)
    assert (back, other_low, other_high) == pytest.approx((-found, -high, -low))
    same, (low, high) = gain(one, one)
    assert same == 0
    assert low <= 0 <= high
