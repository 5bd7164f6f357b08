"""The benchmark's statistics against scipy and values worked out by hand."""

import numpy as np
import pytest
from evaluation.significance import SceneBootstrap, compare, holm


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


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.04 times 3, 2, 1, never falling: 0.03, 0.04, 0.04.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.6]) == [1.0, 1.0]


def test_the_bootstrap_of_single_questions_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    correct = np.random.default_rng(1).random(400) < 0.85
    ours = SceneBootstrap(range(400), resamples=4000).accuracy(correct)
    theirs = stats.bootstrap((correct.astype(float),), np.mean, method="percentile", rng=0).confidence_interval
    assert ours.value == pytest.approx(correct.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.006)
    assert ours.high == pytest.approx(theirs.high, abs=0.006)


def test_questions_about_one_scene_that_go_right_together_widen_the_interval_as_theory_says():
    # 100 scenes of 4 questions, all four right or all wrong: the variance is that of 100 independent questions.
    right = np.random.default_rng(2).random(100) < 0.7
    scenes, correct = np.repeat(np.arange(100), 4), np.repeat(right, 4)
    interval = SceneBootstrap(scenes, resamples=4000).accuracy(correct)
    expected = 2 * 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 100)
    assert interval.high - interval.low == pytest.approx(expected, rel=0.1)


def test_retention_is_relative_to_the_reference_on_the_same_questions():
    reference = [True] * 80 + [False] * 20
    pruned = [True] * 60 + [False] * 40
    interval = SceneBootstrap(range(100)).retention(pruned, reference)
    assert interval.value == pytest.approx(0.75)
    assert interval.low < 0.75 < interval.high
    same = SceneBootstrap(range(100)).retention(reference, reference)
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)
