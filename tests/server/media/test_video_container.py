"""A video is known by its first bytes, also where an image was expected."""

import pytest

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.media.decoding import ImageLimits, open_image
from covervlm.server.media.video_container import container
from tests.server.media.video_files import KINDS, encoded, numbered

NAMES = {"mp4": "mov", "mov": "mov", "mkv": "matroska", "webm": "matroska", "avi": "avi", "gif": "gif"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_known(kind):
    assert container(encoded([numbered(0)], **KINDS[kind])) == NAMES[kind[:4].strip(",")]


@pytest.mark.parametrize("data", [b"", b"GIF", b"RIFF0000WEBP", b"\x89PNG\r\n\x1a\n", b"ftypisom"])
def test_what_is_no_video_is_none(data):
    assert container(data) is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encoded([numbered(0)]), "'video_url' part"),
        (b"\x1a\x45\xdf\xa3", "'video_url' part"),
        (b"GIF89a", "convert it"),
        (b"hello", "convert it"),
    ],
)
def test_a_video_among_the_images_is_told_where_it_belongs(data, words):
    with pytest.raises(InvalidRequest, match=words) as refused:
        open_image(data, ImageLimits(10**6, 10**6))
    assert refused.value.code == "invalid_image"
