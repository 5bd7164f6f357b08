"""Image files that are small to send and large, slow or endless to decode."""

import base64
import functools
import io
import struct
import zlib

from PIL import Image

LARGEST = 7000
"""Pixels on a side: 49 of the 50 megapixels that one image may have."""


def url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@functools.cache
def png(width: int, height: int, mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "PNG", compress_level=9)
    return file.getvalue()


def png_base64(width: int, height: int) -> str:
    return base64.b64encode(png(width, height)).decode()


@functools.cache
def large_png() -> str:
    """147 MB in memory out of about 200 KB."""
    return url(png(LARGEST, LARGEST, "RGB"))


@functools.cache
def tiny_png() -> str:
    return url(png(1, 1))


@functools.cache
def small_jpeg() -> str:
    file = io.BytesIO()
    Image.effect_noise((400, 300), 60).convert("RGB").save(file, "JPEG")
    return url(file.getvalue(), "jpeg")


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@functools.cache
def png_of_many_chunks(size: int) -> str:
    """A picture of one pixel after so many bytes of chunks that hold nothing."""
    data = png(1, 1)
    empty = chunk(b"prVt")
    return url(data[:33] + empty * (size // len(empty)) + data[33:])


@functools.cache
def png_of_empty_data(size: int) -> str:
    """A large picture whose data is preceded by so many bytes of empty IDAT chunks."""
    data = png(1, 1)
    empty = chunk(b"IDAT")
    return url(data[:33] + empty * (size // len(empty)) + data[33:])


@functools.cache
def jpeg_of_many_scans(size: int, side: int = LARGEST) -> str:
    """A grey progressive picture whose last scan is repeated: each costs a pass over all pixels."""
    file = io.BytesIO()
    Image.new("L", (side, side), 128).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    tables = data.rindex(b"\xff\xc4", 0, last)
    scan, end = data[tables:-2], data[-2:]
    return url(data[:tables] + scan * max(1, size // len(scan)) + end, "jpeg")


@functools.cache
def jpeg_of_many_comments(size: int) -> str:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG")
    data = file.getvalue()
    return url(data[:2] + b"\xff\xfe\x00\x02" * (size // 4) + data[2:], "jpeg")


@functools.cache
def gif_of_many_extensions(size: int) -> str:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "GIF")
    data = file.getvalue()
    start = data.index(b"\x2c")
    return url(data[:start] + b"\x21\xfe\x00" * (size // 3) + data[start:], "gif")


@functools.cache
def webp_of_a_large_canvas() -> str:
    file = io.BytesIO()
    Image.new("RGB", (LARGEST, LARGEST)).save(file, "WEBP", lossless=True, method=0)
    return url(file.getvalue(), "webp")
