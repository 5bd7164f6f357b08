"""Random views: cut out of the picture, different each time, and the same again for a seed."""

import random

import numpy as np
import pytest
from PIL import Image

from covervlm.server.clip.encoder.random_views import _cut, random_view
from covervlm.server.clip.sources import _WithViews


def picture(width: int = 60, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("width", "height"), [(60, 40), (1, 1), (1000, 3), (2, 500)])
def test_cuts_lie_inside_and_views_are_squares(width, height):
    for seed in range(200):
        left, top, across, down = _cut(width, height, random.Random(seed))
        assert 0 <= left < left + across <= width
        assert 0 <= top < top + down <= height
    view = random_view(picture(width, height), random.Random(1))
    assert view.mode == "RGB"
    assert view.width == view.height <= min(width, height)


def test_cuts_have_all_sizes_that_they_may_have():
    areas = [w * h / 2400 for _, _, w, h in (_cut(60, 40, random.Random(seed)) for seed in range(500))]
    assert min(areas) == pytest.approx(0.2, abs=0.03)
    assert max(areas) > 0.85


def test_a_seed_gives_the_same_views_in_whatever_batches_they_are_made():
    images = [picture(), picture(30, 30)]
    views, again = _WithViews(images, 5), _WithViews(images, 5)
    assert len(views) == 6
    whole = views[0:6]
    assert (whole[0], whole[3]) == tuple(images)
    assert [view.tobytes() for view in whole] == [again[i].tobytes() for i in range(6)]
    assert len({view.tobytes() for view in whole}) == 6
    assert _WithViews(images, 6)[1].tobytes() != whole[1].tobytes()
