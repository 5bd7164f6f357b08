"""The benchmark's statistics against scipy and values worked out by hand."""

import numpy as np
import pytest
from evaluation.significance import SceneBootstrap, holm


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.04 times 3, 2, 1, never falling: 0.03, 0.04, 0.04.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.6]) == [1.0, 1.0]


def test_the_bootstrap_of_single_questions_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    correct = np.random.default_rng(1).random(400) < 0.85
    ours = SceneBootstrap(range(400), resamples=4000).retention(correct, [True] * 400)
    theirs = stats.bootstrap((correct.astype(float),), np.mean, method="percentile", rng=0).confidence_interval
    assert ours.value == pytest.approx(correct.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.006)
    assert ours.high == pytest.approx(theirs.high, abs=0.006)


def test_questions_about_one_scene_that_go_right_together_widen_the_interval_as_theory_says():
    # 100 scenes of 4 questions, all four right or all wrong: the variance is that of 100 independent questions.
    right = np.random.default_rng(2).random(100) < 0.7
    scenes, correct = np.repeat(np.arange(100), 4), np.repeat(right, 4)
    interval = SceneBootstrap(scenes, resamples=4000).retention(correct, [True] * 400)
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
