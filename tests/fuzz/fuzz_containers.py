"""The order of an image file's parts, before a decoder sees it."""

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.media.containers import MOST_SCANS, scans

TRACED = ("covervlm.server.media.containers",)


def target(data: bytes) -> None:
    try:
        passes = scans(data)
    except InvalidRequest as refused:
        assert refused.code == "image_too_large"
        return
    assert 1 <= passes <= MOST_SCANS
    if not data.startswith(b"\xff\xd8\xff"):
        assert passes == 1
    else:
        # A decoder begins a scan at no more markers than there are bytes that look like one.
        assert passes <= max(1, data.count(b"\xff\xda"))
