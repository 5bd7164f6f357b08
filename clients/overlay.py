"""Draws patches over an image: the vision tokens that were kept, or how much each patch speaks for a label."""

import math
from collections.abc import Collection, Sequence

from PIL import Image, ImageDraw

DIM = 0.25
"""Brightness of dropped patches, as a share of their original one."""
OUTLINE = (255, 210, 0)
SMALLEST_PATCH = 8
"""Pixels; where patches are smaller, the picture is enlarged along that axis until they can be seen."""


def draw_overlay(
    image: Image.Image,
    grid: tuple[int, int],
    kept: Collection[int],
    *,
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    """The RGB image with all but the kept patches dimmed; a line surrounds each connected group of them.

    grid: (rows, columns). kept: places in the grid, in raster order from 0. box: (left, top, right, bottom) of the
    area that the grid covers, in pixels of the image and perhaps beyond its edges; by default the whole image.
    Raises ValueError for places outside the grid.
    """
    rows, columns = grid
    if rows < 1 or columns < 1 or any(not 0 <= index < rows * columns for index in kept):
        raise ValueError(f"a grid of {rows} x {columns} patches does not hold all of the kept ones")
    picture, xs, ys = _enlarged(image, grid, box)

    places = {divmod(index, columns) for index in kept}
    patches = {(row, column): (xs[column], ys[row], xs[column + 1] - 1, ys[row + 1] - 1) for row, column in places}
    lit = Image.new("1", picture.size)
    draw = ImageDraw.Draw(lit)
    for patch in patches.values():
        draw.rectangle(patch, fill=1)
    overlay = Image.composite(picture, picture.point(lambda value: round(value * DIM)), lit)
    draw = ImageDraw.Draw(overlay)
    for (row, column), (x0, y0, x1, y1) in patches.items():
        edges = {
            (row - 1, column): (x0, y0, x1, y0),
            (row + 1, column): (x0, y1, x1, y1),
            (row, column - 1): (x0, y0, x0, y1),
            (row, column + 1): (x1, y0, x1, y1),
        }
        for neighbour, edge in edges.items():
            if neighbour not in places:
                draw.line(edge, fill=OUTLINE)
    return overlay


def draw_evidence(
    image: Image.Image,
    values: Sequence[Sequence[float]],
    *,
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    """The RGB image, the brighter the more a patch speaks for the label; what speaks against it is dimmed most.

    values: by row and column; the largest keeps its patch as bright as it is, those up to 0 are all dimmed alike.
    box: as in `draw_overlay`. Raises ValueError for rows of different lengths.
    """
    if not values or not values[0] or len({len(row) for row in values}) > 1:
        raise ValueError("the values of patches are rows of the same length")
    picture, xs, ys = _enlarged(image, (len(values), len(values[0])), box)
    largest = max(max(map(max, values)), 0.0) or 1.0
    light = Image.new("L", picture.size)
    draw = ImageDraw.Draw(light)
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            patch = (xs[column], ys[row], xs[column + 1] - 1, ys[row + 1] - 1)
            if patch[0] <= patch[2] and patch[1] <= patch[3]:
                draw.rectangle(patch, fill=round(255 * max(value, 0.0) / largest))
    return Image.composite(picture, picture.point(lambda value: round(value * DIM)), light)


def _enlarged(
    image: Image.Image, grid: tuple[int, int], box: tuple[float, float, float, float] | None
) -> tuple[Image.Image, list[int], list[int]]:
    """The image with patches large enough to be seen, and the columns' and rows' edges in its pixels."""
    rows, columns = grid
    left, top, right, bottom = box or (0, 0, image.width, image.height)
    scale_x = max(1, math.ceil(SMALLEST_PATCH * columns / (right - left)))
    scale_y = max(1, math.ceil(SMALLEST_PATCH * rows / (bottom - top)))
    picture = image.resize((image.width * scale_x, image.height * scale_y), Image.Resampling.NEAREST)
    xs = [round((left + (right - left) * column / columns) * scale_x) for column in range(columns + 1)]
    ys = [round((top + (bottom - top) * row / rows) * scale_y) for row in range(rows + 1)]
    return picture, xs, ys
