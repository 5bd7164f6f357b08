import numpy as np
import pytest
from PIL import Image

from covervlm.clients.overlay import DIM, OUTLINE, draw_evidence, draw_overlay


def drawn(size, grid, kept, **options):
    return np.asarray(draw_overlay(Image.new("RGB", size, (200, 100, 60)), grid, kept, **options))


LIT, DARK = [200, 100, 60], [round(value * DIM) for value in (200, 100, 60)]


def test_kept_patches_are_bright_and_outlined_and_the_others_dim():
    picture = drawn((80, 60), (3, 4), [0, 5])
    for row in range(3):
        for column in range(4):
            patch = picture[row * 20 : row * 20 + 20, column * 20 : column * 20 + 20]
            if (row, column) in [(0, 0), (1, 1)]:
                assert (patch[1:-1, 1:-1] == LIT).all()
                edges = [patch[0], patch[-1], patch[:, 0], patch[:, -1]]
                assert all((edge == OUTLINE).all() for edge in edges)
            else:
                assert (patch == DARK).all()


def test_between_two_kept_patches_that_touch_there_is_no_line():
    picture = drawn((80, 60), (3, 4), [1, 2, 5])
    assert (picture[1:19, 21:59] == LIT).all()  # beside each other
    assert (picture[1:39, 21:39] == LIT).all()  # below each other
    for edge in (picture[0, 20:60], picture[19, 40:60], picture[:20, 59], picture[39, 20:40], picture[:40, 20]):
        assert (edge == OUTLINE).all()


def test_the_ends_of_two_rows_do_not_touch():
    picture = drawn((80, 60), (3, 4), [3, 4])
    assert (picture[:20, 79] == OUTLINE).all()
    assert (picture[20:40, 0] == OUTLINE).all()


def test_rows_and_columns_are_not_mixed_up():
    picture = drawn((70, 130), (13, 7), [8])
    ys, xs = (picture == LIT).all(axis=2).nonzero()
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (11, 18, 11, 18)


@pytest.mark.parametrize(("size", "grid"), [((100, 37), (7, 13)), ((336, 336), (24, 24)), ((65, 43), (5, 3))])
def test_patches_tile_the_whole_picture_also_where_sizes_do_not_divide(size, grid):
    picture = drawn(size, grid, range(grid[0] * grid[1]))
    assert not (picture == DARK).all(axis=2).any()


def test_nothing_kept_is_a_dim_picture():
    assert (drawn((80, 60), (3, 4), []) == DARK).all()


@pytest.mark.parametrize(
    ("size", "expected"), [((1, 1), (192, 192)), ((1, 2000), (192, 2000)), ((336, 336), (336, 336))]
)
def test_small_pictures_are_enlarged_until_patches_can_be_seen(size, expected):
    assert draw_overlay(Image.new("RGB", size), (24, 24), [0, 575]).size == expected


def test_a_grid_may_cover_a_part_of_the_picture():
    """The middle square of a wide picture, as a centre crop leaves it."""
    picture = drawn((120, 40), (2, 2), [0, 3], box=(40, 0, 80, 40))
    assert (picture[:, :40] == DARK).all()
    assert (picture[:, 80:] == DARK).all()
    assert (picture[1:19, 41:59] == LIT).all()
    assert (picture[21:39, 61:79] == LIT).all()


def test_a_grid_may_reach_beyond_the_picture():
    """A wide picture that was padded to a square."""
    picture = drawn((80, 40), (4, 4), [0, 4], box=(0, -20, 80, 60))
    assert (picture[1:19, 1:19] == LIT).all()
    assert (picture[20:] == DARK).all()


@pytest.mark.parametrize("kept", [[12], [-1]])
def test_places_outside_the_grid_are_an_error(kept):
    with pytest.raises(ValueError, match="3 x 4"):
        drawn((80, 60), (3, 4), kept)


def test_evidence_keeps_the_strongest_patch_bright_and_dims_what_speaks_against():
    image = Image.new("RGB", (40, 20), (200, 100, 40))
    drawn = draw_evidence(image, [[1.0, 0.5, 0.0, -3.0]], box=(0, 0, 40, 20))
    bright, half, none, against = (drawn.getpixel((10 * column + 5, 10)) for column in range(4))
    assert bright == (200, 100, 40)
    assert none == against == tuple(round(value * DIM) for value in bright)
    for value, whole, least in zip(half, bright, none, strict=True):
        assert value == pytest.approx((whole + least) / 2, abs=2)


def test_evidence_outside_the_picture_is_not_drawn_and_all_against_is_dim_throughout():
    image = Image.new("RGB", (16, 32), (100, 100, 100))
    drawn = draw_evidence(image, [[-1.0, -2.0]], box=(-8, 0, 24, 32))
    assert set(drawn.getdata()) == {(25, 25, 25)}


@pytest.mark.parametrize("values", [[], [[]], [[1.0], [1.0, 2.0]]])
def test_values_that_are_no_grid_are_refused(values):
    with pytest.raises(ValueError, match="rows of the same length"):
        draw_evidence(Image.new("RGB", (8, 8)), values)
