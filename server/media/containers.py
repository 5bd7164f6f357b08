"""What an image file costs beyond its pixels, told from the order of its parts before a decoder sees it.

A few bytes can make a decoder go over all pixels again (a scan of a progressive JPEG), or through a loop of Python's
(empty chunks, comments, extension blocks). No part's content is read or copied, and what is cut off ends the walk: the
decoder says what is wrong with it.
"""

import re
import struct
from collections.abc import Iterator

from covervlm.server.core.errors import InvalidRequest

MOST_PARTS = 4096
_BYTES_PER_PART = 1024
"""Beyond MOST_PARTS, a PNG or WebP may have one part for every so many bytes: libpng's have 8 KiB, others' a row."""
MOST_SCANS = 100
_WINDOW = 2**20
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_RUN_LENGTH_PIXELS = 2**20
"""Most pixels of a run-length encoded BMP, which Pillow decodes in Python."""


def scans(data: bytes) -> int:
    """How often a decoder goes over the pixels of the file: 1 but for JPEGs of several scans.

    Raises InvalidRequest for a file of more parts than any picture needs. 1 for bytes that are no image.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        _count("PNG", _chunks(data, 8, ">I4s", 4), _most_parts(data))
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        _count("WebP", _chunks(data, 12, "<4sI", 0), _most_parts(data))
    elif data[:6] in (b"GIF87a", b"GIF89a"):
        _count("GIF", _blocks(data), MOST_PARTS)  # Pillow joins a comment's blocks one by one
    elif data.startswith(b"\xff\xd8\xff"):
        return _count("JPEG", _segments(data), MOST_PARTS)  # headers alone: all of a scan's data is one part
    elif data.startswith(b"BM") and len(data) >= 34:
        size, width, height, compression = *struct.unpack_from("<Iii", data, 14), data[30]
        if size >= 40 and compression in (1, 2) and abs(width * height) > _RUN_LENGTH_PIXELS:
            raise _refused(f"A BMP with run lengths may have {_RUN_LENGTH_PIXELS} pixels at most; send a PNG.")
    return 1


def _most_parts(data: bytes) -> int:
    return MOST_PARTS + len(data) // _BYTES_PER_PART


def _count(kind: str, parts: Iterator[int], most: int) -> int:
    """Scans among the parts, each of which says whether it is one; at least 1."""
    seen = 0
    for number, scan in enumerate(parts):
        seen += scan
        if number >= most:
            raise _refused(f"The {kind} has more than {most} chunks or blocks; save the picture again.")
        if seen > MOST_SCANS:
            raise _refused(f"The {kind} has more than {MOST_SCANS} scans; save it with fewer, or as a baseline JPEG.")
    return max(1, seen)


def _chunks(data: bytes, position: int, header: str, checksum: int) -> Iterator[int]:
    """PNG's and RIFF's chunks; a RIFF chunk of odd length is followed by one byte."""
    while position + 8 <= len(data):
        first, second = struct.unpack_from(header, data, position)
        name, length = (second, first) if checksum else (first, second)
        yield 0
        if name == b"IEND":
            return
        position += 8 + length + (checksum or length % 2)


def _blocks(data: bytes) -> Iterator[int]:
    """A GIF's blocks before its first image, and every byte between them that belongs to none."""
    if len(data) < 13:
        return
    position = 13 + (3 * 2 ** (data[10] % 8 + 1) if data[10] & 0x80 else 0)
    while position + 1 < len(data) and data[position : position + 1] not in (b",", b";"):
        yield 0
        if data[position] != 0x21:
            position += 1
            continue
        position += 2
        while position < len(data) and data[position]:
            yield 0
            position += 1 + data[position]
        position += 1


def _segments(data: bytes) -> Iterator[int]:
    """A JPEG's segments, and every byte before its first scan that belongs to none."""
    position, begun = 2, False
    while (marker := _next_marker(data, position)) is not None:
        if not begun:
            yield from (0 for _ in range(position, marker))
        kind = data[marker + 1]
        if kind == 0xD9:
            return
        yield int(kind == 0xDA)
        begun = begun or kind == 0xDA
        position = marker + 2
        if kind not in (0x01, 0xD8):
            if position + 2 > len(data):
                return
            position += max(2, struct.unpack_from(">H", data, position)[0])


def _next_marker(data: bytes, position: int) -> int | None:
    # In windows, because a search keeps every other thread waiting, the event loop's among them.
    for start in range(position, len(data), _WINDOW):
        if found := _MARKER.search(data, start, start + _WINDOW + 1):
            return found.start()
    return None


def _refused(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="image_too_large")
