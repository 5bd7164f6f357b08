"""The plot, read back from its SVG."""

from xml.etree import ElementTree

import pytest

from covervlm.server.tuning.comparison import Pair
from covervlm.server.tuning.intervals import loss_interval
from covervlm.server.tuning.plot import plot
from covervlm.server.tuning.search import Cell, Standing

SVG = "{http://www.w3.org/2000/svg}"


def standing(keep, lost, method="mmtok", finished=True):
    pair = Pair(lost, 0, 300)
    return Standing(Cell(method, keep), range(300), pair, loss_interval(pair), finished)


def drawn(standings, best=None, tolerance=0.05):
    return ElementTree.fromstring(plot(standings, best, tolerance))


def numbers(root):
    """Heights of the axis's marks, by the number beside them."""
    marks = [text for text in root.iter(SVG + "text") if text.get("text-anchor") == "end" and text.text != "tolerance"]
    return {float(text.text): float(text.get("y")) - 4 for text in marks}


def test_points_and_bounds_lie_where_the_axis_says():
    ones = [standing(16, 45), standing(64, 12), standing(192, 0)]
    root = drawn(ones, best=ones[1])
    marks = sorted(numbers(root).items())
    (low, y_low), (high, y_high) = marks[0], marks[-1]
    points = [tuple(map(float, spot.split(","))) for spot in root.find(SVG + "polyline").get("points").split()]
    assert sorted(points) == points
    for (_, y), one in zip(points, ones, strict=True):
        shown = low + (y - y_low) / (y_high - y_low) * (high - low)
        assert shown == pytest.approx(100 * one.loss.value, abs=0.15)
    (ring,) = [circle for circle in root.iter(SVG + "circle") if circle.get("r") == "9"]
    assert (float(ring.get("cx")), float(ring.get("cy"))) == pytest.approx(points[1])
    assert low <= 0
    assert high >= 100 * ones[0].loss.high


def test_stopped_cells_are_hollow_and_names_are_text_whatever_they_are():
    root = drawn([standing(16, 90, "a<b&c", finished=False), standing(64, 1, "a<b&c")])
    assert "a<b&c" in [text.text for text in root.iter(SVG + "text")]
    spots = [circle.get("fill") for circle in root.iter(SVG + "circle")]
    assert spots.count("white") == 1


@pytest.mark.parametrize("lost", [0, 1, 300])
def test_a_single_cell_is_drawn_within_the_picture(lost):
    root = drawn([standing(16, lost)], tolerance=0.001)
    heights = [float(line.get(name)) for line in root.iter(SVG + "line") for name in ("y1", "y2")]
    assert all(0 < height < float(root.get("height")) for height in heights)
    assert 2 <= len(numbers(root)) <= 9


def test_the_names_and_lines_of_many_methods_can_be_told_apart():
    methods = [f"method_of_name_{number}" for number in range(14)]
    root = drawn([standing(keep, 3, method) for method in methods for keep in (16, 64)])
    places = [(float(t.get("x")), float(t.get("y"))) for t in root.iter(SVG + "text") if t.text in methods]
    assert len(set(places)) == len(methods)
    assert all(x + 8 * len(methods[-1]) <= float(root.get("width")) for x, _ in places)
    assert max(y for _, y in places) < min(numbers(root).values())
    lines = [(line.get("stroke"), line.get("stroke-dasharray")) for line in root.iter(SVG + "polyline")]
    assert len(set(lines)) == len(methods)
