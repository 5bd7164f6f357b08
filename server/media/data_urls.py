"""Images inside a request's text: data URLs and bare base64, as browsers, SDKs and examples write them."""

import base64
import binascii
import re
from collections.abc import Iterator

from covervlm.server.core.errors import InvalidRequest

_SCHEME = re.compile(r"\s*([a-zA-Z][a-zA-Z0-9+.-]*):")
_FOREIGN = re.compile(r"[^A-Za-z0-9+/]")
_PLAIN = ((" ", ""), ("\t", ""), ("\r", ""), ("\n", ""), ("-", "+"), ("_", "/"))
_REPLACED = dict(_PLAIN)
_REPLACED |= {"%2B": "+", "%2b": "+", "%2F": "/", "%2f": "/", "%3D": "=", "%3d": "=", "%0A": "", "%0a": ""}
"""White space that may be left out, the URL-safe alphabet, and what URLs write with percent signs."""
_PIECE = 2**20
"""Characters of base64 that are decoded at a time, a multiple of 4."""
_FORM = "data:image/png;base64,... with the file's base64"


def url_scheme(url: str) -> str:
    """The lower-case scheme that a URL starts with, after white space; "" for bare base64."""
    scheme = _SCHEME.match(url, 0, 100)  # of what may be megabytes of white space
    return scheme[1].lower() if scheme else ""


def image_bytes(url: str, max_bytes: int) -> bytes:
    """The encoded image inside a base64 data URL or bare base64; its size is checked before anything is decoded.

    A data URL's media type may be left out or be just `image`. Raises InvalidRequest.
    """
    start = 0
    if name := url_scheme(url):
        if name in ("http", "https"):
            raise _invalid(f"This server does not fetch images; send the image itself as a data URL: {_FORM}.")
        if name != "data":
            raise _invalid(f"Images come as data URLs ({_FORM}), not as {name[:20]!r} URLs.")
        start = url.find(",") + 1
        if not start:
            raise _invalid(f"The data URL has no comma before its data; it must have the form {_FORM}.")
        header = url[: start - 1].partition(":")[2]
        media_type, *parameters = [field.strip().lower() for field in header.split(";")]
        if "base64" not in parameters:
            raise _invalid(f"The data URL does not say ';base64' before its comma; it must have the form {_FORM}.")
        if media_type not in ("", "image", "application/octet-stream") and not media_type.startswith("image/"):
            raise _invalid(f"The data URL's media type {media_type[:40]!r} is not an image type such as image/png.")
    return decode_base64(url, max_bytes, start)


def decode_base64(text: str, max_bytes: int, start: int = 0) -> bytes:
    """An encoded image out of base64, plain or URL-safe, padded or not, with white space or percent signs in it.

    start: the place in the text where it begins. Its size is checked before and after. Raises InvalidRequest.
    """
    data, rest, padding, length = [], "", "", 0
    for piece in _cleaned(text, start):
        length += len(piece)
        if length // 4 * 3 > max_bytes + 2:
            raise too_large(max_bytes, "bytes")
        bare = "" if padding else piece.rstrip("=")
        padding += piece[len(bare) :]
        if "=" in bare or padding.strip("=") or len(padding) > 2:
            raise _misplaced()
        rest += bare
        whole = len(rest) // 4 * 4
        data.append(_decoded(rest[:whole], length - len(padding) - len(rest)))
        rest = rest[whole:]
    data.append(_decoded(rest, length - len(padding) - len(rest)))
    if length == len(padding):
        raise _invalid("The image is empty.")
    if padding and length % 4:
        raise _misplaced()
    joined = b"".join(data)
    if len(joined) > max_bytes:
        raise too_large(max_bytes, "bytes")
    return joined


def _cleaned(text: str, start: int) -> Iterator[str]:
    """The base64 from there on without white space, percent signs and the URL-safe alphabet.

    It comes in pieces: what is done to a long text at once keeps every other thread waiting, the event loop's as well.
    """
    while start < len(text):
        end = start + _PIECE
        cut = text.rfind("%", end - 2, end)
        if start < cut and end < len(text):
            end = cut  # what it begins is not torn
        piece = text[start:end]
        for written, meant in _REPLACED.items() if "%" in piece else _PLAIN:
            piece = piece.replace(written, meant)
        yield piece
        start = end


def _decoded(piece: str, start: int) -> bytes:
    try:
        return base64.b64decode(piece + "=" * (-len(piece) % 4), validate=True)
    except (binascii.Error, ValueError):
        if foreign := _FOREIGN.search(piece):
            where = f"{foreign[0]!r} is character {start + foreign.start() + 1}"
            raise _invalid(f"The image is not valid base64, nor a URL: {where}. Send {_FORM}.") from None
        raise _invalid("The image is not valid base64: it ends within a byte and may have been cut off.") from None


def _misplaced() -> InvalidRequest:
    return _invalid("The image is not valid base64: its padding (=) is not where it ends or of the wrong length.")


def too_large(limit: int, unit: str) -> InvalidRequest:
    return InvalidRequest(
        f"The image has more than {limit} {unit}, the most this server takes.", code="image_too_large"
    )


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_image")
