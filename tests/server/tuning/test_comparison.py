"""McNemar's test against scipy and values worked out by hand."""

import numpy as np
import pytest

from covervlm.server.tuning.comparison import compare


def test_mcnemar_counts_the_questions_on_which_the_methods_differ():
    first = [True, True, True, True, False, False, True]
    second = [True, False, False, False, True, False, True]
    outcome = compare(first, second)
    assert (outcome.only_first, outcome.only_second, outcome.questions) == (3, 1, 7)
    assert outcome.difference == pytest.approx(2 / 7)
    # Four coins, three or more heads or tails: 2 * (1 + 4) / 16.
    assert outcome.p == pytest.approx(0.625)


def test_mcnemar_is_the_exact_binomial_test():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.random(300) < 0.8, rng.random(300) < 0.7
        outcome = compare(first, second)
        discordant = outcome.only_first + outcome.only_second
        assert outcome.p == pytest.approx(stats.binomtest(outcome.only_first, discordant, 0.5).pvalue)


def test_methods_that_agree_on_every_question_are_not_told_apart():
    assert compare([True, False, True], [True, False, True]).p == 1.0


def test_a_paired_test_of_different_questions_is_refused():
    with pytest.raises(ValueError, match="same ones"):
        compare([True], [True, False])
