"""Where in an image the tower's patches lie, against the pixels that transformers' processors really produce."""

import numpy as np
import pytest
from PIL import Image

from covervlm.server.demo import model_path
from covervlm.server.models.checkpoint import Checkpoint, load_adapter


def coordinates(width, height):
    """A picture whose red is its x and whose green its y, both from 0 to 255; its blue is 255."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 255)], axis=2).round().astype(np.uint8))


@pytest.mark.parametrize("size", [(336, 336), (600, 300), (250, 500), (100, 90), (1000, 400)])
@pytest.mark.parametrize("checkpoint", ["cropping", "padding"])
def test_patches_show_what_the_box_says_they_show(checkpoint, size, tiny_llava):
    width, height = size
    adapter = load_adapter(Checkpoint(model_path() if checkpoint == "cropping" else tiny_llava))
    [image] = adapter.encode([inputs := adapter.preprocess(coordinates(width, height))])
    processor = adapter.chat.image_processor
    seen = inputs["pixel_values"].permute(1, 2, 0).numpy() * processor.image_std + processor.image_mean
    left, top, right, bottom = image.box
    rows, columns = image.layout.grid
    side, found = len(seen) // rows, 0
    for row in range(rows):
        for column in range(columns):
            x = left + (right - left) * (column + 0.5) / columns
            y = top + (bottom - top) * (row + 0.5) / rows
            red, green, blue = seen[row * side + side // 2, column * side + side // 2]
            if blue < 0.99:
                # Padding, or the blend at its edge.
                assert not (width * 0.1 < x < width * 0.9 and height * 0.1 < y < height * 0.9)
                continue
            found += 1
            assert red * width == pytest.approx(x, abs=0.03 * max(size))
            assert green * height == pytest.approx(y, abs=0.03 * max(size))
    assert found >= rows * columns * min(size) / max(size) * 0.4
