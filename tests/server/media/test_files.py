"""Files that callers may name: below the opened folder, after links and .. are resolved, and nothing else."""

import os
import socket

import pytest

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.media.files import read_media_file


@pytest.fixture
def root(tmp_path):
    """An open folder with files and links, beside a secret."""
    opened = tmp_path / "open"
    (opened / "sub").mkdir(parents=True)
    (opened / "a.png").write_bytes(b"image")
    (opened / "sub" / "b c.png").write_bytes(b"spaced")
    (opened / "é.png").write_bytes(b"accent")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "opened-too").mkdir()
    (tmp_path / "opened-too" / "x.png").write_bytes(b"secret")
    (opened / "inner.png").symlink_to(opened / "a.png")
    (opened / "escape.png").symlink_to(tmp_path / "secret.png")
    (opened / "up").symlink_to(tmp_path)
    (opened / "loop.png").symlink_to(opened / "loop.png")
    os.mkfifo(opened / "pipe.png")
    return opened


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("a.png", b"image"),
        ("sub/../a.png", b"image"),
        ("sub/b%20c.png", b"spaced"),
        ("%C3%A9.png", b"accent"),
        ("inner.png", b"image"),
        ("./sub//../a.png", b"image"),
    ],
)
def test_files_below_the_folder_are_read(root, path, data):
    assert read_media_file(f"file://{root}/{path}", root, 100) == data
    assert read_media_file(f"FILE://localhost{root}/{path}", root, 100) == data


OUTSIDE = [
    "../secret.png",
    "..%2Fsecret.png",
    "%2e%2e/secret.png",
    "escape.png",
    "up/secret.png",
    "../opened-too/x.png",
    "sub/../../secret.png",
    "loop.png",
    "missing.png",
    "sub",
    ".",
    "pipe.png",
    "a.png%00",
    "%ff.png",
]


@pytest.mark.parametrize("path", [*OUTSIDE, "", "a" * 5000])
def test_everything_else_is_as_if_it_did_not_exist(root, path):
    with pytest.raises(InvalidRequest) as refused:
        read_media_file(f"file://{root}/{path}", root, 100)
    assert str(refused.value) == "There is no such file in the folder that this server reads from."


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "file:///", "file://", "file:///dev/zero", "file:a.png", "file://["]
)
def test_absolute_paths_elsewhere_are_refused(root, url):
    with pytest.raises(InvalidRequest, match="no such file"):
        read_media_file(url, root, 100)


def test_other_machines_are_refused(root):
    with pytest.raises(InvalidRequest, match="no such file"):
        read_media_file(f"file://{socket.gethostname()}.test{root}/a.png", root, 100)


def test_a_folder_that_is_a_link_itself_is_resolved_too(root, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(root)
    assert read_media_file(f"file://{link}/a.png", link, 100) == b"image"
    assert read_media_file(f"file://{root}/a.png", link, 100) == b"image"


@pytest.mark.parametrize(("limit", "fits"), [(5, True), (4, False)])
def test_bytes_are_bounded(root, limit, fits):
    if fits:
        assert read_media_file(f"file://{root}/a.png", root, limit) == b"image"
    else:
        with pytest.raises(InvalidRequest, match="more than 4 bytes"):
            read_media_file(f"file://{root}/a.png", root, limit)
