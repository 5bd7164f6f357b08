"""Bytes that are an image and something else, or pretend to be one: right pixels, or a refusal in plain words."""

import base64
import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.media.data_urls import media_bytes
from covervlm.server.media.decoding import ImageLimits, open_image

LIMITS = ImageLimits(max_bytes=1_000_000, max_pixels=100_000)
RED = Image.new("RGB", (6, 4), (255, 0, 0))


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.png", encoded(RED))
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, color_type, rows, *chunks, depth=8):
    """A PNG written by hand: what Pillow would not write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data + chunk(b"IEND", b"")


SCRIPT = b"<script>alert(1)</script>"
PHP = PngImagePlugin.PngInfo()
PHP.add_text("Comment", "<?php system($_GET[0]); ?>")
IMAGES = {
    "png, then a zip": encoded(RED) + archive(),
    "png, then html": encoded(RED) + b"<!doctype html>" + SCRIPT,
    "bmp, then noise": encoded(RED, "BMP") + bytes(range(256)),
    "gif with a script for a comment": encoded(RED, "GIF", comment=SCRIPT),
    "jpeg with a script for a comment": encoded(RED, "JPEG", comment=SCRIPT, quality=100),
    "png with php in its text": encoded(RED, pnginfo=PHP),
    "jpeg said to be png": encoded(RED, "JPEG", quality=100),
    "webp said to be png": encoded(RED, "WEBP", lossless=True),
    "sixteen bits of colour": png(2, 1, 2, b"\0" + struct.pack(">6H", *[65535, 0, 0] * 2), depth=16),
    "sixteen bits of colour and alpha": png(2, 1, 6, b"\0" + struct.pack(">8H", *[65535, 0, 0, 65535] * 2), depth=16),
    "a palette with alpha of its own": png(
        2, 1, 3, b"\0\0\0", chunk(b"PLTE", b"\xff\0\0\0\0\xff"), chunk(b"tRNS", b"\xff\x80")
    ),
    "one pixel": encoded(Image.new("RGB", (1, 1), (255, 0, 0))),
    "one line": encoded(Image.new("RGB", (20_000, 1), (255, 0, 0))),
    "one column": encoded(Image.new("RGB", (1, 20_000), (255, 0, 0))),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_what_is_an_image_among_other_things_is_that_image(kind):
    url = "data:image/png;base64," + base64.b64encode(IMAGES[kind]).decode()
    image = open_image(media_bytes(url, LIMITS.max_bytes), LIMITS).decoded()
    assert image.mode == "RGB"
    red, green, blue = np.asarray(image).reshape(-1, 3).T
    assert red.min() > 250
    assert max(green.max(), blue.max()) < 6


def gif(width, height, frame_width, frame_height):
    """A GIF whose frame is larger than its canvas."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\xff\0\0\0\0\0"
    return screen + b"," + struct.pack("<HHHHB", 0, 0, frame_width, frame_height, 0) + b"\x02\x02\x44\x01\x00;"


def bmp(width, height):
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, *[0] * 6)


NO_IMAGES = {
    "empty": b"",
    "a zip": archive(),
    "a zip, then a png": archive() + encoded(RED),
    "html": b"<!doctype html>" + SCRIPT,
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "pdf": b"%PDF-1.7\n",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "tiff": encoded(RED, "TIFF"),
    "a signature alone": b"\x89PNG\r\n\x1a\n",
    "png of no pixels": png(0, 0, 2, b""),
    "png of a bad checksum": encoded(RED).replace(b"IDAT", b"IDAX"),
    "png with text that unpacks to a gigabyte": png(
        1, 1, 2, b"\0\xff\0\0", chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000)))
    ),
    "png of a colour type that is none": png(1, 1, 5, b"\0\0"),
    "gif with a frame beyond its canvas": gif(1, 1, 60_000, 60_000),
    "bmp of a billion pixels": bmp(40_000, 40_000),
    "bmp of negative width": bmp(-4, 4),
    "webp of a canvas beyond the limit": b"RIFF\x1e\0\0\0WEBPVP8X\x0a" + bytes(7) + b"\xff\xff\0" * 2 + bytes(4),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_is_no_image_is_refused_in_the_servers_own_words(kind):
    with pytest.raises(InvalidRequest) as refused:
        open_image(NO_IMAGES[kind], LIMITS).decoded()
    assert refused.value.code in ("invalid_image", "image_too_large")
    assert str(refused.value).startswith("The ")
    assert not any(word in str(refused.value) for word in ("Error", "PIL", "chunk", "zlib", "BytesIO", "0x"))


def test_cmyk_with_inverted_inks_as_photo_editors_write_it_is_right():
    """Adobe's JPEGs store inks upside down; Pillow writes and reads that marker."""
    inks = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # magenta and yellow: red
    red, green, blue = open_image(encoded(inks, "JPEG", quality=100), LIMITS).decoded().getpixel((4, 4))
    assert red > 247
    assert max(green, blue) < 8
