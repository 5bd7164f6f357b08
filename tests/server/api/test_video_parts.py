"""Clips in chat requests: files and lists of frames reach the engine; the rest is refused and says why."""

import base64
import hashlib
import io

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.media.decoding import image_digest
from covervlm.server.settings import Settings
from tests.server.api.scripted import ScriptedEngine
from tests.server.media.video_files import LOSSLESS, encoded, noise, number_of, numbered, video_url

URL = "messages[0].content[0].video_url.url"
COLORS = ("red", "lime", "blue", "white")


def frame(color, size=(8, 6), kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def clip(*frames, kind="jpeg"):
    return f"data:video/{kind};base64," + ",".join(frames)


def body(url, pruning=None, **video):
    part = {"type": "video_url", "video_url": {"url": url, **video}}
    content = [part, {"type": "text", "text": "What happens?"}]
    extra = {"vision_pruning": pruning} if pruning else {}
    return {"model": "demo", "messages": [{"role": "user", "content": content}], **extra}


def refused(response):
    assert response.status_code == 400, response.text
    return response.json()["error"]


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/prune"])
@pytest.mark.parametrize(("asked", "fps"), [({}, 2.0), ({"fps": None}, 2.0), ({"fps": 8.5}, 8.5), ({"fps": 24}, 24.0)])
def test_frames_reach_the_engine_in_order_with_their_rate(client, engine, route, asked, fps):
    assert client.post(route, json=body(clip(*map(frame, COLORS)), **asked)).status_code == 200
    [video] = engine.requests[0].images
    assert [f.getpixel((0, 0)) for f in video.frames] == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    assert video.fps == fps


@pytest.mark.parametrize("kind", ["jpeg", "JPEG", "jpg", "png", "webp"])
def test_frames_are_recognised_by_their_bytes(client, engine, kind):
    url = clip(frame("red", kind="PNG"), frame("red", kind="BMP"), kind=kind)
    assert client.post("/v1/chat/completions", json=body(url)).status_code == 200
    assert len(engine.requests[0].images[0].frames) == 2


def test_the_digest_covers_every_frame_their_order_and_the_rate(client, engine):
    urls = [
        (clip(*map(frame, COLORS)), 2.0),
        (clip(*map(frame, reversed(COLORS))), 2.0),
        (clip(*map(frame, COLORS[:3])), 2.0),
        (clip(*map(frame, COLORS)), 4.0),
        (clip(*(frame(color, kind="BMP") for color in COLORS)), 2.0),
    ]
    for url, fps in urls:
        assert client.post("/v1/chat/completions", json=body(url, fps=fps)).status_code == 200
    digests = [request.images[0].digest for request in engine.requests]
    assert len(set(digests)) == 4
    assert digests[0] == digests[4]
    stills = b"".join(bytes.fromhex(image_digest(f)) for f in engine.requests[0].images[0].frames)
    assert digests[0] == hashlib.sha256(b"video 2.0" + stills).hexdigest()


def test_a_clip_counts_as_one_image_with_one_budget(client, engine):
    url = clip(*map(frame, COLORS))
    assert client.post("/v1/chat/completions", json=body(url, {"keep_tokens": [9]})).status_code == 200
    assert engine.requests[0].pruning.keep_tokens == (9,)
    error = refused(client.post("/v1/chat/completions", json=body(url, {"keep_tokens": [9, 9]})))
    assert error["param"] == "vision_pruning.keep_tokens"


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("data:video/mp4;base64,AAAAIGZ0eXBpc29t", "invalid_video", "damaged or cut off"),
        ("data:video/webm;base64,GkXfow==", "invalid_video", "damaged or cut off"),
        ("data:video/mp4;base64," + frame("red"), "invalid_video", "MP4, MOV, WebM, MKV, AVI, GIF"),
        ("data:video/mp4;base64,@@@@", "invalid_video", "The video is not valid base64"),
        ("data:video/mp4," + frame("red"), "invalid_video", "data:video/mp4;base64,..."),
        ("data:image/png;base64," + frame("red"), "invalid_video", "is no video type such as video/mp4"),
        ("data:audio/wav;base64," + frame("red"), "invalid_video", "is no video type such as video/mp4"),
        ("https://127.0.0.1/clip.mp4", "invalid_video_url", "The host in the video's URL has no public address"),
        ("ftp://example.com/clip.mp4", "invalid_video", "not as 'ftp' URLs"),
        ("file:///etc/passwd", "invalid_video", "Videos come as data URLs"),
        ("", "invalid_video", "The video is empty"),
        ("data:video/jpeg," + frame("red"), "invalid_video", "form"),
        ("data:video/jpeg;base64", "invalid_video", "form"),
        ("data:video/jpeg;base64,", "invalid_image", "Frame 1 of the video: The image is empty"),
        (clip(frame("red"), "@@@@"), "invalid_image", "Frame 2 of the video: The image is not valid base64"),
        (clip(frame("red"), ""), "invalid_image", "Frame 2 of the video: The image is empty"),
        (clip(frame("red"), "aGVsbG8="), "invalid_image", "Frame 2 of the video: The data is not an image"),
        (clip(frame("red"), frame("red", (6, 8))), "invalid_video", "frame 2 differs"),
    ],
)
def test_what_is_no_list_of_frames_is_refused_and_says_why(client, engine, url, code, words):
    error = refused(client.post("/v1/chat/completions", json=body(url)))
    assert (error["param"], error["code"]) == (URL, code)
    assert words in error["message"]
    assert engine.requests == []


@pytest.mark.parametrize("fps", [0, -1, 1e9, "2", True])
def test_a_rate_that_cannot_be_is_refused(client, engine, fps):
    error = refused(client.post("/v1/chat/completions", json=body(clip(frame("red")), fps=fps)))
    assert error["param"] == "messages[0].content[0].video_url.fps"
    assert engine.requests == []


def test_videos_come_from_users_only(client, engine):
    request = body(clip(frame("red")))
    request["messages"][0]["role"] = "assistant"
    assert refused(client.post("/v1/chat/completions", json=request))["param"] == "messages[0].content"


@pytest.mark.parametrize(
    ("limits", "frames", "code"),
    [
        ({"max_video_frames": 3}, [frame("red")] * 4, "video_too_large"),
        ({"max_video_frames": 4}, [frame("red")] * 4, None),
        ({"max_video_pixels": 4 * 48 - 1}, [frame("red")] * 4, "video_too_large"),
        ({"max_video_pixels": 4 * 48}, [frame("red")] * 4, None),
        ({"max_video_bytes": 100}, [frame("red")] * 4, "video_too_large"),
        ({"max_image_pixels": 47}, [frame("red")] * 4, "image_too_large"),
        ({"max_image_bytes": 50}, [frame("red")] * 4, "image_too_large"),
        ({"max_video_frames": 3}, [""] * 50_000, "video_too_large"),
        ({"max_video_frames": 3}, [""] * 1_000_000, "invalid_json"),  # weighed before it is parsed
        ({"max_images": 0}, [frame("red")], "too_many_images"),
    ],
)
def test_frames_bytes_and_pixels_are_bounded(limits, frames, code):
    engine = ScriptedEngine()
    response = TestClient(create_app(Settings(**limits), engine)).post("/v1/chat/completions", json=body(clip(*frames)))
    if code is None:
        assert response.status_code == 200
        assert len(engine.requests[0].images[0].frames) == 4
    else:
        assert refused(response)["code"] == code
        assert engine.requests == []


def test_a_files_frames_reach_the_engine_as_if_they_had_been_sent(client, engine):
    """So they share every cache with the list of the same frames."""
    pictures = [noise(i) for i in range(40)]
    for fps, sampled in [(None, np.linspace(0, 39, 32, dtype=int)), (5, np.linspace(0, 39, 8, dtype=int))]:
        data = encoded(pictures, **LOSSLESS)
        assert client.post("/v1/chat/completions", json=body(video_url(data), fps=fps)).status_code == 200
        file = engine.requests[-1].images[0]
        assert file.fps == pytest.approx((len(sampled) - 1) * 25 / 39)
        listed = []
        for index in sampled:
            buffer = io.BytesIO()
            pictures[index].save(buffer, "PNG")
            listed.append(base64.b64encode(buffer.getvalue()).decode())
        assert client.post("/v1/chat/completions", json=body(clip(*listed), fps=file.fps)).status_code == 200
        assert engine.requests[-1].images[0].digest == file.digest


@pytest.mark.parametrize("media_type", ["video/mp4", "VIDEO/X-MSVIDEO", "video", "application/octet-stream", ""])
def test_a_file_is_known_by_its_bytes_whatever_it_is_called(client, engine, media_type):
    data = encoded([numbered(5)], container="matroska")
    assert client.post("/v1/chat/completions", json=body(video_url(data, media_type))).status_code == 200
    assert [number_of(frame) for frame in engine.requests[0].images[0].frames] == [5]
    assert engine.requests[0].images[0].fps == 2.0


def test_a_gif_may_say_that_it_is_an_image(client, engine):
    data = encoded([numbered(i) for i in range(3)], "gif", "gif", "rgb8")
    for media_type in ("image/gif", "video/gif"):
        assert client.post("/v1/chat/completions", json=body(video_url(data, media_type))).status_code == 200
        assert [number_of(frame) for frame in engine.requests[-1].images[0].frames] == [0, 1, 2]


@pytest.mark.parametrize(
    ("limits", "frames", "code"),
    [
        ({"max_video_frames": 3}, [0, 4, 9], None),
        ({"max_video_pixels": 3 * 64 * 48}, [0, 4, 9], None),
        ({"max_video_pixels": 64 * 48 - 1}, [], "video_too_large"),
        ({"max_image_pixels": 64 * 48 - 1}, [], "video_too_large"),
        ({"max_video_bytes": 500}, [], "video_too_large"),
    ],
)
def test_a_files_frames_bytes_and_pixels_are_bounded(limits, frames, code):
    engine = ScriptedEngine()
    data = encoded([numbered(i) for i in range(10)])
    with TestClient(create_app(Settings(**limits), engine)) as client:
        response = client.post("/v1/chat/completions", json=body(video_url(data)))
    if code is None:
        assert response.status_code == 200
        assert [number_of(frame) for frame in engine.requests[0].images[0].frames] == frames
    else:
        error = refused(response)
        assert (error["code"], error["param"]) == (code, URL)
        assert engine.requests == []


def test_a_file_may_lie_on_the_server_where_its_folder_is_opened(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(encoded([numbered(i) for i in range(4)]))
    engine = ScriptedEngine()
    with TestClient(create_app(Settings(allowed_media_dir=tmp_path), engine)) as client:
        assert client.post("/v1/chat/completions", json=body(f"file://{tmp_path}/clip.mp4")).status_code == 200
        error = refused(client.post("/v1/chat/completions", json=body("file:///etc/passwd")))
    assert [number_of(frame) for frame in engine.requests[0].images[0].frames] == [0, 1, 2, 3]
    assert error["code"] == "invalid_video_url"


def test_a_model_without_videos_says_so():
    with TestClient(create_app(Settings(threads=1, clip_model="none"))) as client:
        error = refused(client.post("/v1/chat/completions", json=body(clip(frame("red"), frame("red")))))
    assert error["param"] == "messages"
    assert "images, not videos" in error["message"]
