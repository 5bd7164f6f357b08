"""What a file makes a decoder do beyond its pixels is counted and bounded; what encoders write passes."""

import io
import time
import zlib
from struct import pack

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.media.containers import MOST_PARTS, MOST_SCANS, scans
from covervlm.server.media.decoding import ImageLimits, open_image

LIMITS = ImageLimits(max_bytes=20 * 2**20, max_pixels=50_000_000)
MIB = 2**20


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(width, height, mode="RGB"):
    ramp = np.add.outer(np.arange(height), np.arange(width)) * 200 // (width + height)
    return Image.fromarray(np.stack([ramp, ramp[::-1], ramp[:, ::-1]], 2).astype(np.uint8)).convert(mode)


def chunk(kind, data=b""):
    return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))


PNG, JPEG, GIF, WEBP = (encoded(smooth(8, 8), kind) for kind in ("PNG", "JPEG", "GIF", "WEBP"))
FIRST_IMAGE = GIF.index(b",", 13 + 3 * 2 ** (GIF[10] % 8 + 1))


def riff(body):
    return b"RIFF" + pack("<I", len(body) + 4) + b"WEBP" + body


def of_scans(times, side=8):
    """A grey progressive JPEG whose last scan is there so many times more."""
    data = encoded(smooth(side, side, "L"), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xc4", 0, data.rindex(b"\xff\xda"))
    return data[:-2] + data[start:-2] * times + data[-2:]


def run_length_bmp(width, height):
    return b"BM" + pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 8, 1, *[0] * 5) + b"\0\0" * 1000


WORK = {
    "a PNG of empty chunks": PNG[:33] + chunk(b"prVt") * (10 * MIB // 12) + PNG[33:],
    "a PNG of empty data chunks": PNG[:33] + chunk(b"IDAT") * (10 * MIB // 12) + PNG[33:],
    "a PNG of empty chunks after its data": PNG[:-12] + chunk(b"prVt") * (10 * MIB // 12) + PNG[-12:],
    "a JPEG of empty comments": JPEG[:2] + b"\xff\xfe\0\2" * (10 * MIB // 4) + JPEG[2:],
    "a JPEG of empty comments between its scans": of_scans(1)[:-2] + b"\xff\xfe\0\2" * (10 * MIB // 4) + b"\xff\xd9",
    "a JPEG of fill bytes": JPEG[:2] + b"\xff" * 10 * MIB + JPEG[2:],
    "a JPEG of zeros between its segments": JPEG[:20] + bytes(10 * MIB) + JPEG[20:],
    "a JPEG of thousands of scans": of_scans(5000),
    "a GIF of empty comments": GIF[:FIRST_IMAGE] + b"!\xfe\0" * (10 * MIB // 3) + GIF[FIRST_IMAGE:],
    "a GIF of one long comment": GIF[:FIRST_IMAGE] + b"!\xfe" + b"\1a" * (5 * MIB) + b"\0" + GIF[FIRST_IMAGE:],
    "a GIF of bytes between its blocks": GIF[:FIRST_IMAGE] + bytes(10 * MIB) + GIF[FIRST_IMAGE:],
    "a WebP of empty chunks": riff(WEBP[12:] + b"abcd\0\0\0\0" * (10 * MIB // 8)),
    "a BMP of run lengths": run_length_bmp(7000, 7000),
}


@pytest.mark.usefixtures("spared")
@pytest.mark.parametrize("kind", WORK)
def test_files_that_are_all_work_are_refused_at_once(kind):
    """The processor's time, and of this thread alone: what these files cost a decoder is several seconds."""
    began = time.thread_time()
    with pytest.raises(InvalidRequest) as refused:
        open_image(WORK[kind], LIMITS).decoded()
    assert time.thread_time() - began < 0.5
    assert refused.value.code == "image_too_large"
    assert str(refused.value).startswith(("The ", "A "))


def test_scans_are_counted_and_bounded_by_the_pixels_that_each_goes_over():
    assert [scans(of_scans(n)) for n in (0, 1, 20)] == [6, 7, 26]
    assert scans(of_scans(MOST_SCANS - 6)) == MOST_SCANS
    tall = ImageLimits(LIMITS.max_bytes, 64 * 64)
    assert open_image(of_scans(10, 64), tall).scans == 16
    with pytest.raises(InvalidRequest, match="17 scans of 64 x 64 pixels"):
        open_image(of_scans(11, 64), tall)


OPTIONS = {
    "PNG": [{}, {"optimize": True}, {"compress_level": 0}, {"dpi": (300, 300)}],
    "JPEG": [
        {},
        {"progressive": True, "quality": 95},
        {"optimize": True, "subsampling": 0},
        {"comment": b"a" * 60_000},
    ],
    "WEBP": [{}, {"lossless": True}, {"exif": b"Exif\0\0" + bytes(1000)}],
    "GIF": [{}, {"interlace": True}, {"comment": b"a" * 60_000}],
    "BMP": [{}],
}
SAVED = [(kind, i) for kind, options in OPTIONS.items() for i in range(len(options))]


@pytest.mark.parametrize(("kind", "options"), SAVED)
@pytest.mark.parametrize("size", [(1, 1), (640, 480), (1500, 1000)])
def test_what_encoders_write_passes(kind, options, size):
    opened = open_image(encoded(smooth(*size), kind, **OPTIONS[kind][options]), LIMITS)
    assert (opened.width, opened.height) == size
    assert 1 <= opened.scans <= 12


def test_many_parts_are_fine_where_they_hold_much():
    data = PNG[:33] + chunk(b"prVt", bytes(1000)) * (2 * MOST_PARTS) + PNG[33:]
    assert open_image(data, LIMITS).decoded().size == (8, 8)


def test_a_png_may_have_a_chunk_for_each_row():
    rows = b"".join(chunk(b"IDAT", bytes(900)) for _ in range(7000))
    assert scans(PNG[:33] + rows + PNG[33:]) == 1


def test_headers_of_a_jpeg_are_bounded_however_large_it_is():
    headers = b"\xff\xfe\0\2" * (MOST_PARTS + 1)
    with pytest.raises(InvalidRequest, match=f"more than {MOST_PARTS}"):
        scans(JPEG[:2] + headers + b"\xff\xe0\xff\xff" + bytes(10 * MIB) + JPEG[2:])


STARTS = [PNG[:33], JPEG[:20], of_scans(1), GIF[:FIRST_IMAGE], WEBP[:20], run_length_bmp(9, 9), b""]
PIECES = st.sampled_from(
    [b"\xff\xda", b"\xff\xc4\0\2", b"\xff\xfe", b"\xff", b"!\xfe", b"!\xf9\4", b"IDAT", b"\0\0\0", b"RIFF"]
)


@given(
    start=st.sampled_from(STARTS), cut=st.integers(0, 40), rest=st.lists(PIECES | st.binary(max_size=9), max_size=40)
)
def test_of_any_bytes_nothing_comes_but_a_count_or_a_refusal(start, cut, rest):
    data = start[: max(0, len(start) - cut)] + b"".join(rest)
    try:
        assert 1 <= scans(data) <= MOST_SCANS
    except InvalidRequest:
        assert len(data) > 34
