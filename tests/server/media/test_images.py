"""Encoded images to RGB pixels: formats, colour modes, limits, and everything that is no image."""

import asyncio
import base64
import hashlib
import io
import random
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from covervlm.server.engines.base import EngineOverloaded, ImagePart, InvalidRequest
from covervlm.server.media import images
from covervlm.server.media.images import ImageLimits, ImageLoader, decode_image, image_bytes, image_digest

LIMITS = ImageLimits(max_bytes=1_000_000, max_pixels=100_000)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data):
    image = decode_image(data, LIMITS)
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
    difference = np.asarray(decode_image(encoded(photo, "JPEG", quality=95), LIMITS)).astype(int) - np.asarray(photo)
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
    image = decode_image(encoded(stored, "JPEG", exif=exif, quality=100), LIMITS)
    assert image.size == (24, 16)
    assert image.getpixel((3, 3))[1] < 60
    assert image.getpixel((20, 12))[1] > 200


def test_broken_exif_does_not_spoil_the_pixels():
    assert decode_image(encoded(Image.new("RGB", (8, 8)), "JPEG", exif=b"Exif\x00\x00nonsense"), LIMITS).size == (8, 8)


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "TGA"])
def test_other_formats_are_refused(kind):
    with pytest.raises(InvalidRequest, match="formats PNG, JPEG, WEBP, GIF, BMP"):
        decode_image(encoded(Image.new("RGB", (16, 16)), kind), LIMITS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_off_image_is_refused(kind, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(InvalidRequest) as refused:
        decode_image(data[: int(len(data) * share)], LIMITS)
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
            assert decode_image(bytes(damaged), LIMITS).mode == "RGB"
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
        decode_image(png_header(*size), LIMITS)
    assert refused.value.code == "image_too_large"


def test_as_many_pixels_as_allowed_are_fine():
    assert decode_image(encoded(Image.new("RGB", (1000, 100))), LIMITS).size == (1000, 100)


def b64(data):
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64," + b64(b"abc"),
        "DATA:IMAGE/PNG;BASE64," + b64(b"abc"),
        "data:image/png;name=a.png;base64," + b64(b"abc"),
        "data:;base64," + b64(b"abc"),
        b64(b"abc"),
        " \n" + b64(b"abc") + "\n",
        "data:image/png;base64,YW\r\nJj",
    ],
)
def test_data_urls_and_bare_base64_are_read(url):
    assert image_bytes(url, LIMITS) == b"abc"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://example.com/a.png", "data URL"),
        ("HTTPS://example.com/a.png", "data URL"),
        ("file:///etc/passwd", "'file'"),
        ("ftp://example.com/a.png", "'ftp'"),
        ("javascript:alert(1)", "'javascript'"),
        ("data:image/png," + b64(b"abc"), "form"),
        ("data:image/png;base64", "form"),
        ("data:text/html;base64," + b64(b"abc"), "media type"),
        ("data:image/png;base64,", "empty"),
        ("", "empty"),
        ("data:image/png;base64,YWJ", "base64"),
        ("data:image/png;base64,YW-_", "base64"),
        ("not base64 é", "base64"),
    ],
)
def test_other_urls_are_refused_and_say_why(url, words):
    with pytest.raises(InvalidRequest, match=words) as refused:
        image_bytes(url, LIMITS)
    assert refused.value.code == "invalid_image"


@pytest.mark.parametrize(("size", "fits"), [(9, True), (10, True), (11, False), (12, False), (1000, False)])
def test_encoded_bytes_are_counted(size, fits):
    limits = ImageLimits(max_bytes=10, max_pixels=1)
    if fits:
        assert len(image_bytes(b64(bytes(size)), limits)) == size
    else:
        with pytest.raises(InvalidRequest, match="more than 10 bytes"):
            image_bytes(b64(bytes(size)), limits)


def test_too_many_bytes_are_refused_before_base64_is_decoded(monkeypatch):
    def decoded(*_, **__):
        raise AssertionError("base64 was decoded")

    monkeypatch.setattr(images.base64, "b64decode", decoded)
    with pytest.raises(InvalidRequest, match="more than 10 bytes"):
        image_bytes("A" * 1000, ImageLimits(max_bytes=10, max_pixels=1))


def test_the_digest_is_of_size_and_pixels():
    wide, tall = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))
    assert image_digest(wide) == hashlib.sha256(b"4x2" + bytes(24)).hexdigest()
    assert image_digest(wide) != image_digest(tall)
    png, bmp = (decode_image(encoded(wide, kind), LIMITS) for kind in ("PNG", "BMP"))
    assert image_digest(png) == image_digest(bmp) == image_digest(wide)


async def test_images_load_off_the_event_loop_with_the_refusal_naming_the_part():
    loader = ImageLoader(LIMITS, threads=1, max_pending=4)
    try:
        part = await loader.load(b64(encoded(Image.new("RGB", (2, 2), "red"))), param="messages[0]")
        assert part.image.getpixel((0, 0)) == (255, 0, 0)
        assert part.digest == image_digest(part.image)
        with pytest.raises(InvalidRequest) as refused:
            await loader.load("nonsense!", param="messages[3].content[1].image_url.url")
        assert refused.value.param == "messages[3].content[1].image_url.url"
    finally:
        await loader.close()


async def test_remote_images_are_decoded_like_any_other_and_refused_by_name():
    async def fetch(url, max_bytes):
        assert max_bytes == LIMITS.max_bytes
        if url == "https://images.test/red.png":
            return encoded(Image.new("RGB", (2, 2), "red"))
        if url == "https://images.test/page.html":
            return b"<html>"
        raise InvalidRequest("not to be had", code="invalid_image_url")

    async def nothing():
        pass

    fetch.aclose = nothing
    loader = ImageLoader(LIMITS, threads=1, max_pending=4, fetch=fetch)
    try:
        part = await loader.load(" https://images.test/red.png\n", param="p")
        assert part.digest == image_digest(Image.new("RGB", (2, 2), "red"))
        for url, code in [("https://images.test/page.html", "invalid_image"), ("http://x/", "invalid_image_url")]:
            with pytest.raises(InvalidRequest) as refused:
                await loader.load(url, param="messages[0].content[0].image_url.url")
            assert (refused.value.param, refused.value.code) == ("messages[0].content[0].image_url.url", code)
    finally:
        await loader.close()


@pytest.mark.parametrize("opened", [True, False])
async def test_files_are_read_from_an_opened_folder_only(tmp_path, opened):
    (tmp_path / "red.png").write_bytes(encoded(Image.new("RGB", (2, 2), "red")))
    loader = ImageLoader(LIMITS, threads=1, max_pending=4, folder=tmp_path if opened else None)
    try:
        if opened:
            part = await loader.load(f"file://{tmp_path}/red.png", param="p")
            assert part.image.getpixel((0, 0)) == (255, 0, 0)
        else:
            with pytest.raises(InvalidRequest, match="not as 'file' URLs"):
                await loader.load(f"file://{tmp_path}/red.png", param="p")
    finally:
        await loader.close()


async def test_no_more_images_wait_than_allowed_and_there_is_room_again_after(monkeypatch):
    opened, threads, part = threading.Event(), set(), ImagePart(Image.new("RGB", (1, 1)), "")

    def slow(data, limits):
        threads.add(threading.current_thread().name)
        assert opened.wait(20)
        return part

    monkeypatch.setattr(images, "image_part", slow)
    loader = ImageLoader(LIMITS, threads=2, max_pending=5)
    try:
        loads = [asyncio.create_task(loader.load("YWJj", param="p")) for _ in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(EngineOverloaded):
            await loader.load("YWJj", param="p")
        opened.set()
        assert await asyncio.gather(*loads) == [part] * 5
        assert await loader.load("YWJj", param="p") is part
        assert len(threads) <= 2
        assert all(name.startswith("media") for name in threads)
    finally:
        opened.set()
        await loader.close()
