"""The intervals against scipy, slow versions of their definitions, and what they promise, counted out."""

from itertools import product

import numpy as np
import pytest
from scipy import optimize, stats

from covervlm.server.tuning.comparison import PairedComparison
from covervlm.server.tuning.intervals import design_effect, loss_interval, questions_needed, share_interval


def loss(only_first, only_second, questions, **options):
    return loss_interval(PairedComparison(only_first, only_second, questions, 1.0), **options)


@pytest.mark.parametrize(("right", "questions"), [(0, 20), (13, 20), (300, 300), (271, 300), (1, 1)])
def test_a_share_of_single_questions_has_wilsons_interval(right, questions):
    theirs = stats.binomtest(right, questions).proportion_ci(0.95, method="wilson")
    ours = share_interval([n < right for n in range(questions)], range(questions))
    assert (ours.value, ours.low, ours.high) == pytest.approx((right / questions, theirs.low, theirs.high), abs=1e-12)


def test_questions_that_go_right_together_count_as_one():
    single = share_interval([n < 70 for n in range(100)], range(100))
    together = share_interval([n < 70 for n in range(100) for _ in range(4)], [n for n in range(100) for _ in range(4)])
    assert (together.low, together.high) == pytest.approx((single.low, single.high))


def test_the_design_effect_is_the_variance_over_pictures_by_that_over_questions():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 40, 200)
    column = ((rng.random(40)[pictures] + rng.random(200)) > 1).astype(float)
    rest = column - column.mean()
    expected = sum(rest[pictures == one].sum() ** 2 for one in range(40)) / (rest**2).sum()
    assert expected > 1.2
    assert design_effect([column.tolist()], [pictures.tolist()]) == pytest.approx(expected)
    assert design_effect([column.tolist(), [0.0] * 30], [pictures.tolist(), range(30)]) == pytest.approx(expected)


def test_without_differences_or_with_balanced_pictures_questions_count_in_full():
    assert design_effect([[1.0] * 8], [[0, 1] * 4]) == 1
    assert design_effect([[1.0, -1.0] * 4], [[0, 0, 1, 1, 2, 2, 3, 3]]) == 1


@pytest.mark.parametrize("risk", [0.05, 0.0125])
@pytest.mark.parametrize(
    ("first", "second", "questions"), [(0, 0, 300), (4, 0, 300), (9, 5, 300), (3, 8, 40), (30, 9, 60)]
)
def test_the_upper_bound_is_where_the_score_test_turns(first, second, questions, risk):
    """At the bound, the likeliest shares with that loss, found by search, put the seen loss at the test's quantile."""
    bound = loss(first, second, questions, risk=risk).high

    def unlikelihood(only_second):
        shares = np.array([only_second + bound, only_second, 1 - 2 * only_second - bound])
        counts = np.array([first, second, questions - first - second])
        return -np.sum(counts[counts > 0] * np.log(shares[counts > 0]))

    limits = (max(0.0, -bound) + 1e-12, (1 - bound) / 2 - 1e-12)
    only_second = optimize.minimize_scalar(unlikelihood, bounds=limits, method="bounded", options={"xatol": 1e-12}).x
    deviation = np.sqrt(questions * (2 * only_second + bound - bound**2))
    score = (questions * bound - (first - second) - 0.5) / deviation
    assert stats.norm.sf(score) == pytest.approx(risk, rel=1e-3)


def test_the_lower_bound_is_the_upper_one_of_the_other_method():
    assert loss(9, 5, 120).low == -loss(5, 9, 120).high


def test_the_bounds_hold_the_value_and_widen_with_certainty_and_the_design_effect():
    usual, surer, fewer = loss(12, 4, 200), loss(12, 4, 200, risk=0.01), loss(12, 4, 200, design_effect=2)
    assert usual.value == fewer.value == 0.04
    for wider in (surer, fewer):
        assert wider.low < usual.low < 0.04 < usual.high < wider.high
    assert fewer.high == pytest.approx(loss(6, 2, 100).high)


@pytest.mark.parametrize("questions", [20, 60])
def test_a_bound_is_wrong_at_most_as_often_as_it_says(questions):
    """Every possible outcome, weighted by how likely it is under a true loss."""
    outcomes = [(b, c) for b, c in product(range(questions + 1), repeat=2) if b + c <= questions]
    bounds = np.array([loss(b, c, questions).high for b, c in outcomes])
    counts = np.array([(b, c, questions - b - c) for b, c in outcomes])
    for true, only_second in product([0.01, 0.02, 0.05, 0.1, 0.3], [0, 0.01, 0.05, 0.1]):
        likely = stats.multinomial.pmf(counts, questions, [only_second + true, only_second, 1 - 2 * only_second - true])
        assert likely.sum() == pytest.approx(1)
        assert likely[bounds < true].sum() <= 0.05


@pytest.mark.parametrize(("tolerance", "risk"), [(0.02, 0.05), (0.02, 0.025), (0.1, 0.05)])
def test_the_questions_needed_are_the_first_number_that_passes(tolerance, risk):
    first = next(n for n in range(1, 1000) if loss(0, 0, n, risk=risk).high < tolerance)
    assert questions_needed(tolerance, risk=risk) == first
