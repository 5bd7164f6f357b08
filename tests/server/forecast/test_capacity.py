"""What a server bears, on hours that the test writes down."""

import numpy as np
import pytest

from covervlm.server.forecast.capacity import bearable

NAN = float("nan")


@pytest.mark.parametrize(
    ("requests", "crowded", "expected"),
    [
        ([], [], None),
        ([10, 20, 30], [0, 0, 0], None),
        ([10, 20, 30], [0, 0, 1], None),  # once is chance
        ([10, 20, 30, 40], [0, 0, 1, 1], 30),
        ([40, 10, 30, 20], [1, 0, 1, 0], 30),
        ([10, 20, 30, 40], [0, 0, 0.04, 1], None),  # 2 minutes of an hour
        ([10, 20, 30, 40], [0, 0, 0.05, 1], 30),
        ([10, 20, 30, 40, 50], [0, 1, 0, 1, 1], 40),  # one hour above was free by luck
        ([5, 10, 20, 30, 40], [1, 0, 0, 0, 0], None),  # a burst in a quiet hour is no load
        ([30, 30, 30, 30], [1, 1, 1, 0], 30),
        ([30, 30, 30, 30], [1, 1, 0, 0], None),
        ([30, 30, 30, 30, 30], [1, 1, 0, 0, 0], None),
        ([10, 20, NAN, 40, 50, 60], [0, 0, 1, 1, 1, NAN], 40),
    ],
)
def test_it_is_the_load_that_parts_crowded_hours_from_others(requests, crowded, expected):
    assert bearable(np.array(requests, float), np.array(crowded, float)) == expected
