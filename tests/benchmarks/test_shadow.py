"""What the benchmark of shadows prints."""

import pytest
from shadow import interval, table


def test_a_medians_interval_is_the_sign_tests_of_the_tables():
    """Of 10 values, the second and the ninth; of 20, the sixth and the fifteenth."""
    assert interval(range(10, 0, -1)) == (2, 9)
    assert interval(range(1, 21)) == (6, 15)


def test_ratios_are_those_of_pairs():
    text = table({"without": [0.1, 0.2, 0.4], "with": [0.2, 0.2, 0.2]})
    assert "| without | 200.0 |" in text
    assert "median 1.000 (0.500 to 2.000), 3 pairs" in text


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_ratios_have_their_whole_range(count):
    assert interval(range(count)) == (0, count - 1)
