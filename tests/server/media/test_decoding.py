"""Encoded images to RGB pixels: formats, colour modes, limits, and everything that is no image."""

import hashlib
import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.media.decoding import ImageLimits, image_digest, open_image

LIMITS = ImageLimits(max_bytes=1_000_000, max_pixels=100_000)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data):
    image = open_image(data, LIMITS).decoded()
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


@pytest.fixture
def photo():
    """Smooth colours, so that lossy formats stay close."""
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    return Image.fromarray(
        np.stack([np.tile(ramp, (24, 1)), np.full((24, 32), 128, np.uint8), np.tile(ramp[::-1], (24, 1))], 2)
    )


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_keep_every_pixel(photo, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    assert pixels(encoded(photo, kind, **options)) == np.asarray(photo).tolist()


def test_jpeg_stays_close(photo):
    difference = np.asarray(open_image(encoded(photo, "JPEG", quality=95), LIMITS).decoded()).astype(int) - np.asarray(
        photo
    )
    assert abs(difference).max() < 16


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_counts(kind):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert pixels(data)[0][0] == [255, 0, 0]


def test_transparency_is_laid_over_white():
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 128)])
    assert pixels(encoded(image)) == [[[255, 0, 0], [255, 255, 255], [127, 127, 127]]]


def test_grey_with_alpha_is_laid_over_white():
    image = Image.new("LA", (2, 1))
    image.putdata([(0, 255), (0, 0)])
    assert pixels(encoded(image)) == [[[0, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palettes_transparent_colour_is_white(kind):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255] + [0] * 762)
    image.putdata([0, 1])
    assert pixels(encoded(image, kind, transparency=1)) == [[[255, 0, 0], [255, 255, 255]]]


def test_a_palette_without_transparency_keeps_its_colours():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255] + [0] * 762)
    image.putdata([0, 1])
    assert pixels(encoded(image)) == [[[255, 0, 0], [0, 0, 255]]]


def test_one_colour_of_an_rgb_image_can_be_transparent():
    image = Image.new("RGB", (2, 1))
    image.putdata([(1, 2, 3), (4, 5, 6)])
    assert pixels(encoded(image, transparency=(4, 5, 6))) == [[[1, 2, 3], [255, 255, 255]]]


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    image = Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], dtype=np.uint16))
    assert pixels(encoded(image)) == [[[0] * 3, [128] * 3, [255] * 3]]


@pytest.mark.parametrize("mode", ["1", "L"])
def test_black_and_white_and_grey_become_rgb(mode):
    image = Image.new(mode, (2, 1))
    image.putdata([0, 255])
    assert pixels(encoded(image)) == [[[0] * 3, [255] * 3]]


def test_cmyk_becomes_the_rgb_it_means():
    """Cyan ink alone, as JPEG stores it."""
    red, green, blue = pixels(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100))[4][4]
    assert red < 8
    assert green > 247
    assert blue > 247


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_in_exif_is_followed(orientation):
    upright = Image.new("RGB", (24, 16), "white")
    upright.paste((255, 0, 0), (0, 0, 8, 8))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = open_image(encoded(stored, "JPEG", exif=exif, quality=100), LIMITS).decoded()
    assert image.size == (24, 16)
    assert image.getpixel((3, 3))[1] < 60
    assert image.getpixel((20, 12))[1] > 200


def test_broken_exif_does_not_spoil_the_pixels():
    assert open_image(
        encoded(Image.new("RGB", (8, 8)), "JPEG", exif=b"Exif\x00\x00nonsense"), LIMITS
    ).decoded().size == (8, 8)


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "TGA"])
def test_other_formats_are_refused(kind):
    with pytest.raises(InvalidRequest, match="formats PNG, JPEG, WEBP, GIF, BMP"):
        open_image(encoded(Image.new("RGB", (16, 16)), kind), LIMITS).decoded()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_off_image_is_refused(kind, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(InvalidRequest) as refused:
        open_image(data[: int(len(data) * share)], LIMITS).decoded()
    assert refused.value.code == "invalid_image"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_damaged_bytes_are_an_image_or_a_refusal(kind):
    """Whatever a decoder trips over, nothing but InvalidRequest comes out, without the decoder's own words."""
    rng = random.Random(kind)
    refusals = []
    data = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 20, 3), dtype=np.uint8)), kind)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            assert open_image(bytes(damaged), LIMITS).decoded().mode == "RGB"
        except InvalidRequest as refused:
            refusals.append(refused)
    assert refusals
    assert {refused.code for refused in refusals} <= {"invalid_image", "image_too_large"}
    assert all(str(refused).startswith("The ") for refused in refusals)


def png_header(width, height):
    """A PNG that promises many pixels in a few bytes."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    idat = b"IDAT" + zlib.compress(b"")
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, idat, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("size", [(1000, 101), (50_000, 50_000), (2**31 - 1, 2**31 - 1)])
def test_pixels_are_counted_before_any_is_decoded(size):
    with pytest.raises(InvalidRequest, match="more than 100000 pixels") as refused:
        open_image(png_header(*size), LIMITS).decoded()
    assert refused.value.code == "image_too_large"


def test_as_many_pixels_as_allowed_are_fine():
    assert open_image(encoded(Image.new("RGB", (1000, 100))), LIMITS).decoded().size == (1000, 100)


def test_the_digest_is_of_size_and_pixels():
    wide, tall = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))
    assert image_digest(wide) == hashlib.sha256(b"4x2" + bytes(24)).hexdigest()
    assert image_digest(wide) != image_digest(tall)
    png, bmp = (open_image(encoded(wide, kind), LIMITS).decoded() for kind in ("PNG", "BMP"))
    assert image_digest(png) == image_digest(bmp) == image_digest(wide)
