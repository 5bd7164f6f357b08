"""Images and videos inside a request's text: data URLs and bare base64, as browsers and SDKs write them."""

import base64
import binascii
import re
from collections.abc import Iterator

from covervlm.server.core.base64_pieces import PIECE, decoded_piece
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.media.kinds import IMAGE, VIDEO, Kind

_SCHEME = re.compile(r"\s*([a-zA-Z][a-zA-Z0-9+.-]*):")
_HEADER = re.compile(r"\s*data:[^,;]*(?:;[^,;=]*=[^;]*)*?;\s*base64\s*,", re.IGNORECASE)
"""As a browser's recording has it, with commas in a parameter's value: data:video/webm;codecs=vp9,opus;base64,..."""
_LONGEST_HEADER = 1000
"""Characters."""
_FOREIGN = re.compile(r"[^A-Za-z0-9+/]")
_PLAIN = ((" ", ""), ("\t", ""), ("\r", ""), ("\n", ""), ("-", "+"), ("_", "/"))
_REPLACED = dict(_PLAIN)
_REPLACED |= {"%2B": "+", "%2b": "+", "%2F": "/", "%2f": "/", "%3D": "=", "%3d": "=", "%0A": "", "%0a": ""}
"""White space that may be left out, the URL-safe alphabet, and what URLs write with percent signs."""


def url_scheme(url: str) -> str:
    """The lower-case scheme that a URL starts with, after white space; "" for bare base64."""
    scheme = _SCHEME.match(url, 0, 100)  # of what may be megabytes of white space
    return scheme[1].lower() if scheme else ""


def media_bytes(url: str, max_bytes: int, kind: Kind = IMAGE) -> bytes:
    """The encoded file inside a base64 data URL or bare base64; its size is checked before anything is decoded.

    A data URL's media type may be left out or be just `image`. Raises InvalidRequest.
    """
    start = 0
    if name := url_scheme(url):
        if name in ("http", "https"):
            raise kind.invalid(
                f"This server does not fetch {kind.name}s; send the {kind.name} itself as a data URL: {kind.form}."
            )
        if name != "data":
            raise kind.invalid(f"{kind.name.title()}s come as data URLs ({kind.form}), not as {name[:20]!r} URLs.")
        whole = _HEADER.match(url, 0, _LONGEST_HEADER)
        start = whole.end() if whole else url.find(",") + 1
        if not start:
            raise kind.invalid(f"The data URL has no comma before its data; it must have the form {kind.form}.")
        header = url[: start - 1].partition(":")[2]
        media_type, *parameters = [field.strip().lower() for field in header.split(";")]
        if "base64" not in parameters:
            raise kind.invalid(
                f"The data URL does not say ';base64' before its comma; it must have the form {kind.form}."
            )
        if not kind.takes(media_type):
            raise kind.invalid(
                f"The data URL's media type {media_type[:40]!r} is no {kind.name} type such as {kind.example}"
                + (f"; a chat takes it in a '{other.name}_url' part." if (other := _of_type(media_type)) else ".")
            )
    return decode_base64(url, max_bytes, start, kind)


def decode_base64(text: str, max_bytes: int, start: int = 0, kind: Kind = IMAGE) -> bytes:
    """An encoded file out of base64, plain or URL-safe, padded or not, with white space or percent signs in it.

    start: the place in the text where it begins. Its size is checked before and after. Raises InvalidRequest.
    """
    data, rest, padding, length = [], "", "", 0
    for piece in _cleaned(text, start):
        length += len(piece)
        if length // 4 * 3 > max_bytes + 2:
            raise kind.too_large(max_bytes, "bytes")
        bare = "" if padding else piece.rstrip("=")
        padding += piece[len(bare) :]
        if "=" in bare or padding.strip("=") or len(padding) > 2:
            raise _misplaced(kind)
        rest += bare
        whole = len(rest) // 4 * 4
        data.append(_decoded(rest[:whole], length - len(padding) - len(rest), kind))
        rest = rest[whole:]
    data.append(_decoded(rest, length - len(padding) - len(rest), kind))
    if length == len(padding):
        raise kind.invalid(f"The {kind.name} is empty.")
    if padding and length % 4:
        raise _misplaced(kind)
    joined = b"".join(data)
    if len(joined) > max_bytes:
        raise kind.too_large(max_bytes, "bytes")
    return joined


def _cleaned(text: str, start: int) -> Iterator[str]:
    """The base64 from there on without white space, percent signs and the URL-safe alphabet.

    It comes in pieces: what is done to a long text at once keeps every other thread waiting, the event loop's as well.
    """
    while start < len(text):
        end = start + PIECE
        cut = text.rfind("%", end - 2, end)
        if start < cut and end < len(text):
            end = cut  # what it begins is not torn
        piece = text[start:end]
        for written, meant in _REPLACED.items() if "%" in piece else _PLAIN:
            piece = piece.replace(written, meant)
        yield piece
        start = end


def _decoded(piece: str, start: int, kind: Kind) -> bytes:
    if len(piece) >= PIECE // 2 and (data := decoded_piece(piece)) is not None:
        return data
    try:
        return base64.b64decode(piece + "=" * (-len(piece) % 4), validate=True)
    except (binascii.Error, ValueError):
        if foreign := _FOREIGN.search(piece):
            where = f"{foreign[0]!r} is character {start + foreign.start() + 1}"
            raise kind.invalid(f"The {kind.name} is not valid base64, nor a URL: {where}. Send {kind.form}.") from None
        raise kind.invalid(
            f"The {kind.name} is not valid base64: it ends within a byte and may have been cut off."
        ) from None


def _of_type(media_type: str) -> Kind | None:
    """What else a data URL with this media type holds."""
    return next((kind for kind in (IMAGE, VIDEO) if kind.takes(media_type)), None)


def _misplaced(kind: Kind) -> InvalidRequest:
    return kind.invalid(
        f"The {kind.name} is not valid base64: its padding (=) is not where it ends or of the wrong length."
    )
