"""Files of videos in the loader: charged before they are decoded, and dropped when their caller leaves."""

import asyncio
import base64
import io
import os
from types import SimpleNamespace

import pytest
from PIL import Image

from covervlm.server.core.caller import ANONYMOUS, Caller, Callers, InFlight
from covervlm.server.core.errors import EngineOverloaded, InvalidRequest
from covervlm.server.core.pace import AT_ONCE, IMAGES
from covervlm.server.media import video, video_worker
from covervlm.server.media.decoding import BYTES_PER_PIXEL, ImageLimits
from covervlm.server.media.images import ImageLoader
from covervlm.server.media.kinds import VIDEO
from covervlm.server.media.video import VideoLimits, VideoLoader
from covervlm.server.media.video_worker import OPENING_BYTES, Task, VideoFile
from tests.server.media.video_files import encoded, number_of, numbered, video_url

LIMITS = VideoLimits(max_frames=64, max_bytes=10**6, max_pixels=10**7)


@pytest.fixture(scope="module")
def clip():
    return encoded([numbered(i) for i in range(40)])


def loaders(**options):
    images = ImageLoader(ImageLimits(10**6, 10**6), threads=1, max_pending=4, **options)
    return images, VideoLoader(images, LIMITS)


async def test_the_frames_stay_charged_and_nothing_else(clip):
    images, videos = loaders()
    memory = InFlight(10**9)
    with Callers(memory=memory).request("a") as caller:
        part = await videos.load(video_url(clip), fps=None, param="p", caller=caller)
        assert [number_of(frame) for frame in part.frames][-1] == 39
        assert memory.bytes == 32 * 64 * 48 * BYTES_PER_PIXEL
    assert memory.bytes == 0
    await images.close()


async def test_what_decoding_takes_is_charged_before_it_begins(clip):
    images, videos = loaders()
    url = video_url(clip)
    opening = VideoFile(clip, Task(len(clip), "mov", None, 64, 10**6, 10**7)).opening
    needed = 3 * len(url) + OPENING_BYTES + 32 * 64 * 48 * BYTES_PER_PIXEL + opening.bytes
    for most, enough in ((needed, True), (needed - 1, False), (OPENING_BYTES, False)):
        memory = InFlight(most)
        with Callers(memory=memory).request(ANONYMOUS) as caller:
            if enough:
                await videos.load(url, fps=None, param="p", caller=caller)
            else:
                with pytest.raises(EngineOverloaded):
                    await videos.load(url, fps=None, param="p", caller=caller)
        assert memory.bytes == 0
    await images.close()


async def test_a_caller_who_leaves_ends_the_process(clip, monkeypatch, tmp_path):
    """In the middle of opening, here: it says nothing for ever, but its number."""
    images, videos = loaders()
    number = tmp_path / "number"
    os.mkfifo(number)
    script = tmp_path / "worker.py"
    script.write_text(
        f"import os, sys, threading\nprint(os.getpid(), file=open({str(number)!r}, 'w'))\nthreading.Event().wait()\n"
    )
    monkeypatch.setattr(video_worker, "__file__", str(script))
    memory = InFlight(10**9)

    async def request():
        with Callers(memory=memory).request("a") as caller:
            await videos.load(video_url(clip), fps=None, param="p", caller=caller)

    task = asyncio.create_task(request())
    pid = int(await asyncio.to_thread(number.read_text))
    assert memory.bytes > OPENING_BYTES
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert memory.bytes == 0
    assert len(images._turns) == 0
    await images.close()


async def test_videos_are_fetched_as_videos_within_their_own_limit(clip):
    async def fetch(url, max_bytes, *, owner, hold, pace, kind):
        assert (max_bytes, kind) == (LIMITS.max_bytes, VIDEO)
        if url == "https://videos.test/clip.mp4":
            return clip
        raise kind.invalid_url("not to be had")

    async def nothing():
        pass

    fetch.aclose = nothing
    images, videos = loaders(fetch=fetch)
    with Callers().request("a") as caller:
        part = await videos.load(" https://videos.test/clip.mp4\n", fps=5, param="p", caller=caller)
        assert [number_of(frame) for frame in part.frames] == [0, 5, 11, 16, 22, 27, 33, 39]
        with pytest.raises(InvalidRequest) as refused:
            await videos.load("https://videos.test/other.mp4", fps=5, param="p", caller=caller)
    assert (refused.value.code, refused.value.param) == ("invalid_video_url", "p")
    await images.close()


async def test_a_lists_frames_go_at_a_keys_pace_like_images_and_a_file_like_one(clip, monkeypatch):
    waited, file = [], io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    frames = "data:video/png;base64," + ",".join([base64.b64encode(file.getvalue()).decode()] * 50)

    async def at_once(seconds):
        waited.append(seconds)

    monkeypatch.setattr(video, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": at_once}))
    images, videos = loaders()
    callers = Callers(clock=lambda: 100.0)
    with callers.request("greedy") as greedy, callers.request("other") as other:
        for _ in range(int(IMAGES * AT_ONCE) // 50 + 1):
            await videos.load(frames, fps=None, param="p", caller=greedy)
        await videos.load(video_url(clip), fps=None, param="p", caller=greedy)
        assert waited == pytest.approx([50 / IMAGES, 51 / IMAGES])
        await videos.load(frames, fps=None, param="p", caller=other)
        with pytest.raises(InvalidRequest):
            await videos.load("data:video/png;base64," + "," * 10**6, fps=None, param="p", caller=Caller())
    assert len(waited) == 2
    await images.close()
