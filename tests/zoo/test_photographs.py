"""Photographs beside drawn scenes, in files of every format and under overlays."""

import io

import numpy as np
import pytest
from PIL import Image, ImageChops

from covervlm.clients.overlay import DIM, draw_overlay
from covervlm.server.media.decoding import ImageLimits, image_digest, open_image
from tests.zoo.photographs import PHOTOGRAPHS, file, photograph

LIMITS = ImageLimits(max_bytes=20 * 2**20, max_pixels=50_000_000)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_files_are_decoded_as_pillow_alone_does(name):
    decoded = open_image(file(name), LIMITS).decoded()
    with Image.open(io.BytesIO(file(name))) as image:
        if image.mode == "RGBA":
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        expected = image.convert("RGB")
    assert decoded.size == expected.size
    assert ImageChops.difference(decoded, expected).getbbox() is None


@pytest.mark.parametrize("name", ["chelsea.png", "page.png", "rocket.jpg"])
def test_formats_without_loss_give_the_same_digest_and_others_a_picture_that_is_close(name):
    image = photograph(name)
    digests = {image_digest(open_image(encoded(image, kind), LIMITS).decoded()) for kind in ("PNG", "BMP")}
    digests.add(image_digest(open_image(encoded(image, "WEBP", lossless=True), LIMITS).decoded()))
    assert digests == {image_digest(image)}
    whole = np.asarray(image, float)
    for kind, options in [("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("GIF", {})]:
        close = np.asarray(open_image(encoded(image, kind, **options), LIMITS).decoded(), float)
        assert np.abs(close - whole).mean() < 12


@pytest.mark.parametrize("name", ["astronaut.png", "text.png"])
def test_an_overlay_leaves_kept_patches_as_they_were_and_dims_the_rest(name):
    image, kept = photograph(name), [0, 7, 100, 143]
    drawn = draw_overlay(image, (12, 12), kept)
    assert drawn.size == image.size
    before, after = np.asarray(image, int), np.asarray(drawn, int)
    for place in range(144):
        row, column = divmod(place, 12)
        y, x = (int((where + 0.5) * size / 12) for where, size in ((row, image.height), (column, image.width)))
        expected = before[y, x] if place in kept else np.round(before[y, x] * DIM)
        assert (after[y, x] == expected).all()
