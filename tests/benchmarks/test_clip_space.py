"""The zero-shot benchmark's measures and pictures."""

import math

import numpy as np
import pytest
from clip_space.agreement import nmi, rand_index
from clip_space.scene_sets import SETS, scene_set
from demo_model.scenes import SHAPES, make_scene


def test_agreement_is_that_of_the_definitions():
    truth = [0, 0, 1, 1, 2, 2]
    assert nmi([2, 2, 0, 0, 1, 1], truth) == pytest.approx(1)
    assert rand_index([2, 2, 0, 0, 1, 1], truth) == 1
    # Two of three groups told apart: I = H(labels), pairs that differ in treatment: the four between groups 1 and 2.
    merged = [0, 0, 1, 1, 1, 1]
    entropy = -(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3)
    assert nmi(merged, truth) == pytest.approx(2 * entropy / (entropy + math.log(3)))
    assert rand_index(merged, truth) == pytest.approx(11 / 15)
    independent = np.arange(4000) % 2, np.arange(4000) // 2 % 2
    assert nmi(*independent) == pytest.approx(0, abs=1e-9)
    assert rand_index(*independent) == pytest.approx(0.5, abs=1e-3)


def test_rand_index_counts_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, 40), rng.integers(0, 3, 40)
    pairs = [(i, j) for i in range(40) for j in range(i)]
    expected = np.mean([(a[i] == a[j]) == (b[i] == b[j]) for i, j in pairs])
    assert rand_index(a, b) == pytest.approx(expected)


@pytest.mark.parametrize("name", SETS)
def test_sets_repeat_and_have_the_shapes_that_they_promise(name):
    images, shapes, colors = scene_set(name, 32)
    again = scene_set(name, 32)
    assert (shapes, colors) == again[1:]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(images, again[0], strict=True))
    counts = np.bincount(shapes, minlength=len(SHAPES))
    if SETS[name].tail:
        assert counts[0] > 3 * counts[4] > 0
    else:
        assert set(counts) == {4}


@pytest.mark.parametrize("name", ["small", "noisy", "blurred", "occluded"])
def test_each_way_of_degrading_changes_every_picture_and_keeps_its_size(name):
    for seed in range(4):
        scene = make_scene(90_600_000 + seed, n_objects=1)
        degraded = SETS[name].degrade(scene, np.random.default_rng(seed))
        assert degraded.size == scene.image.size
        assert degraded.tobytes() != scene.image.tobytes()
