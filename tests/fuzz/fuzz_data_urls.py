"""Data URLs and bare base64: refused in words, or the very bytes that Python's own decoder makes of them."""

import base64
import re
from urllib.parse import unquote

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.media.data_urls import media_bytes

TRACED = ("covervlm.server.media.data_urls",)
MOST = 2048
LONGEST_MESSAGE = 400


def target(data: bytes) -> None:
    url = data.decode(errors="replace")
    try:
        found = media_bytes(url, MOST)
    except InvalidRequest as refused:
        assert refused.code in ("invalid_image", "image_too_large")
        assert str(refused).isprintable()
        assert len(str(refused)) < LONGEST_MESSAGE
        return
    assert 0 < len(found) <= MOST
    # Base64 has no semicolon, so the last one is in the header, in which a parameter may have commas.
    encoded = url.rpartition(";")[2].partition(",")[2] if ":" in url else url
    bare = unquote(re.sub(r"[ \t\r\n]", "", encoded)).translate({45: "+", 95: "/", 10: None}).rstrip("=")
    assert found == base64.b64decode(bare + "==")
