"""Draws which vision tokens of an image were kept: their patches stay bright, the others are dimmed."""

import math
from collections.abc import Collection

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
    left, top, right, bottom = box or (0, 0, image.width, image.height)
    scale_x = max(1, math.ceil(SMALLEST_PATCH * columns / (right - left)))
    scale_y = max(1, math.ceil(SMALLEST_PATCH * rows / (bottom - top)))
    picture = image.resize((image.width * scale_x, image.height * scale_y), Image.Resampling.NEAREST)
    xs = [round((left + (right - left) * column / columns) * scale_x) for column in range(columns + 1)]
    ys = [round((top + (bottom - top) * row / rows) * scale_y) for row in range(rows + 1)]

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
