"""What every method owes that groups pictures."""

from dataclasses import fields

import pytest
import torch

from covervlm.server.clip.methods.contracts import Pictures
from tests.server.clip.method_samples import CLASSES, dtypes, every_group, pictures, quick


def test_pictures_that_cannot_be_grouped_are_refused():
    good = pictures()
    for change, words in [
        ({"hidden": good.hidden[0]}, "images, dimensions"),
        ({"hidden": good.hidden[:0]}, "at least one image"),
        ({"hidden": good.hidden * float("nan")}, "finite"),
        ({"projection": good.projection[:, 1:]}, "projection"),
        ({"references": good.references[:1]}, "two reference words"),
        ({"concept": good.concept[1:]}, "dimensions"),
    ]:
        with pytest.raises(ValueError, match=words):
            Pictures(**{field.name: getattr(good, field.name) for field in fields(good)} | change)


@every_group
@dtypes
@pytest.mark.parametrize(("n", "count"), [(1, 1), (1, None), (2, None), (3, 2), (40, 4), (40, None)])
def test_every_image_is_in_one_of_the_groups_and_the_largest_comes_first(name, dtype, n, count):
    found = quick("group", name).group(pictures(n, dtype), count)
    assert found.points.dtype == dtype
    assert len(found.points) == n
    assert found.labels.shape == found.words.shape == (n,)
    sizes = torch.bincount(found.labels).tolist()
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == count or count is None
    assert 0 <= int(found.words.min()) <= int(found.words.max()) < CLASSES


@every_group
def test_groups_that_are_apart_are_found_and_named(name):
    found = quick("group", name).group(pictures(), CLASSES)
    truth = torch.arange(40) % CLASSES
    assert torch.equal(found.words, truth)
    assert torch.equal(found.labels[:, None] == found.labels[None], truth[:, None] == truth[None])


@every_group
def test_the_same_seed_gives_the_same_groups_and_one_picture_many_times_is_no_harm(name):
    first, second = (quick("group", name).group(pictures(), 3, seed=5) for _ in range(2))
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.points, second.points)
    same = quick("group", name).group(pictures(features=pictures().hidden[:1].repeat(30, 1)), 3)
    assert same.points.isfinite().all()
    assert same.labels.shape == (30,)


@every_group
def test_more_groups_than_pictures_are_refused(name):
    with pytest.raises(ValueError, match="cannot make 5 clusters of 3 points"):
        quick("group", name).group(pictures(3), 5)
