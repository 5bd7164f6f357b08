"""Clips of the clients arrive at the server as the frames that they hold, at their rate."""

import asyncio

import numpy as np
import pytest
from PIL import Image

from covervlm.clients import AsyncClient, Client, Video, user
from covervlm.server import create_app
from covervlm.server.settings import Settings
from tests.server.api.live import live_server
from tests.server.api.scripted import ScriptedEngine
from tests.server.media.video_files import encoded, noise, number_of, numbered

FRAMES = [noise(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def engine():
    return ScriptedEngine()


@pytest.fixture(scope="module")
def client(engine):
    with live_server(create_app(Settings(), engine)) as url, Client(url, retries=0) as client:
        engine.requests.clear()
        yield client


def test_a_file_is_sampled_at_the_rate_that_was_asked_for(client, engine, tmp_path):
    data = encoded([numbered(i) for i in range(100)])
    (tmp_path / "clip.mp4").write_bytes(data)
    for source in (tmp_path / "clip.mp4", str(tmp_path / "clip.mp4"), data):
        answer = client.chat(Video(source, fps=2), "What happens?", keep_tokens=8)
        [clip] = engine.requests[-1].images
        assert [number_of(frame) for frame in clip.frames] == np.linspace(0, 99, 8, dtype=int).tolist()
        assert len(answer.images) == 1
    client.chat(Video(data), "What happens?")
    assert len(engine.requests[-1].images[0].frames) == 32


@pytest.mark.parametrize(("fps", "rate"), [(None, 2.0), (0.5, 0.5)])
def test_a_list_of_images_is_a_clip_of_these_frames(client, engine, tmp_path, fps, rate):
    FRAMES[1].save(tmp_path / "second.png")
    client.chat(Video([FRAMES[0], tmp_path / "second.png", np.asarray(FRAMES[2])], fps), "What happens?")
    [clip] = engine.requests[-1].images
    assert [frame.tobytes() for frame in clip.frames] == [frame.tobytes() for frame in FRAMES]
    assert clip.fps == rate


def test_clips_and_pictures_keep_their_order(client, engine):
    client.chat([FRAMES[0], Video(FRAMES), FRAMES[1]], "What happens?", keep_tokens=[1, 2, 3])
    sizes = [getattr(part, "frames", None) and len(part.frames) for part in engine.requests[-1].images]
    assert sizes == [None, 3, None]
    assert engine.requests[-1].pruning.keep_tokens == (1, 2, 3)


def test_a_clip_is_streamed_and_pruned_as_a_picture_is(client, engine):
    with client.stream(Video(FRAMES), "What happens?") as stream:
        assert "".join(stream)
    assert len(engine.requests[-1].images[0].frames) == 3
    client.prune(Video(FRAMES), "What happens?", keep_tokens=4)
    assert len(engine.requests[-1].images[0].frames) == 3


def test_the_client_for_asyncio_takes_the_same_clips(client, engine):
    async def ask():
        async with AsyncClient(client._connection.base_url) as other:
            await other.chat(Video(FRAMES, fps=4), "What happens?")

    asyncio.run(ask())
    assert engine.requests[-1].images[0].fps == 4


def test_what_is_at_a_url_is_left_to_the_server():
    [part, _] = user("What happens?", Video("https://example.com/a.mp4", fps=1))["content"]
    assert part == {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4", "fps": 1}}


@pytest.mark.parametrize("frames", [[], ["https://example.com/a.png"], [Image.new("RGB", (4, 4)), "HTTP://a/b.png"]])
def test_a_list_without_frames_or_with_remote_ones_is_refused(frames):
    with pytest.raises(ValueError, match="clip"):
        user("What happens?", Video(frames))
