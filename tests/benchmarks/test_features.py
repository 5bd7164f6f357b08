"""The features benchmark's measures, draws and pictures."""

import numpy as np
import pytest
import torch
from clip_space.views import crop, recoloured, shuffled
from frozen.runs import table
from frozen.search import recall
from frozen.spaces import Space
from PIL import Image
from torch.nn.functional import normalize


def test_recall_counts_those_with_one_of_their_class_among_the_nearest_others():
    points = normalize(torch.tensor([[1.0, 0], [1, 0.1], [1, 0.2], [0, 1]]), dim=1)
    y = torch.tensor([0, 1, 0, 1])
    assert recall(points, y, 1) == 0
    assert recall(points, y, 2) == 0.75
    assert recall(points, y, 3) == 1


def test_a_draw_takes_so_many_of_each_class_and_leaves_all_others():
    space = Space(torch.zeros(30, 2), torch.arange(30) % 3)
    known, rest = space.draw(5, lambda label: label + 1)
    assert torch.bincount(space.y[known]).tolist() == [1, 2, 3]
    assert sorted([*known.tolist(), *rest.tolist()]) == list(range(30))
    assert not torch.equal(known, space.draw(6, lambda label: label + 1)[0])


def test_the_table_has_means_and_paired_differences_with_their_intervals():
    runs = {"base": [0.5, 0.6, 0.7], "other": [0.52, 0.64, 0.72]}
    *_, base, other, _ = table("Title", [("setting", runs)], "base")
    assert base == "| base | 60.0 |"
    assert other == "| other | 62.7 (+2.7 ± 2.9) |"  # 2, 4, 2: t(0.975, 2) = 4.30, times 1.155 / sqrt(3)


@pytest.mark.parametrize("view", [crop, recoloured, shuffled])
def test_views_keep_the_size_and_repeat_by_their_seed(view):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8))
    first, again, other = (view(picture, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.size == picture.size
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_shuffled_tiles_keep_the_colours_and_new_hues_keep_the_brightness_order():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8))
    tiles = np.sort(np.asarray(shuffled(picture, np.random.default_rng(0))).reshape(-1, 3), axis=0)
    assert np.array_equal(tiles, np.sort(np.asarray(picture).reshape(-1, 3), axis=0))
    red = Image.new("RGB", (8, 8), (200, 30, 30))
    hues = {recoloured(red, np.random.default_rng(seed)).convert("HSV").getpixel((0, 0))[0] for seed in range(8)}
    assert len(hues) > 4
