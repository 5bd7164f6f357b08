"""Videos that are small to send and large, slow or endless to decode, and what else befalls who decodes them."""

import asyncio
import base64
import functools
import io
import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

from tests.e2e.attack import images, process
from tests.e2e.attack.attacker import Answer, Attacker
from tests.e2e.attack.registry import REFUSED, attack

MIB = 2**20


def video_chat(*urls: str) -> bytes:
    videos = [{"type": "video_url", "video_url": {"url": url, "fps": 1}} for url in urls]
    content = [*videos, {"type": "text", "text": "What happens?"}]
    return json.dumps({"model": "demo", "messages": [{"role": "user", "content": content}], "max_tokens": 4}).encode()


def url(data: bytes) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(data).decode()}"


@functools.cache
def clip(frames: int = 30, container: str = "mp4", width: int = 64, height: int = 48) -> bytes:
    """A file with a single key frame."""
    import av  # not where vLLM's server is attacked, which is done without these

    file = io.BytesIO()
    codec, pixels = ("gif", "rgb8") if container == "gif" else ("libx264", "yuv420p")
    with av.open(file, "w", format=container) as out:
        options = {} if container == "gif" else {"preset": "ultrafast", "x264-params": "keyint=infinite:scenecut=0"}
        stream = out.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for number in range(frames):
            frame = av.VideoFrame(width, height, "rgb24")
            plane = frame.planes[0]
            plane.update(bytes([number % 256]) * plane.buffer_size)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return file.getvalue()


def claiming_frames(count: int = 1_000_000) -> bytes:
    """An MP4 whose tables tell of that many frames of a byte each, all in its only chunk."""
    data, number = bytearray(clip()), count.to_bytes(4)
    for box, at, value in (
        (b"stts", 12, number),
        (b"stsz", 8, (1).to_bytes(4)),
        (b"stsz", 12, number),
        (b"stsc", 16, number),
    ):
        start = data.index(box) + at
        data[start : start + 4] = value
    return bytes(data)


def canvas(side: int) -> bytes:
    """A GIF of small frames on a canvas of that many pixels on a side."""
    data = bytearray(clip(container="gif"))
    data[6:10] = side.to_bytes(2, "little") * 2
    return bytes(data)


def many_frames() -> bytes:
    """10 MiB of a GIF's frames of one pixel."""
    frame = b"\x21\xf9\x04\x00\x01\x00\x00\x00" + b"\x2c" + bytes(4) + b"\x01\x00\x01\x00\x00" + b"\x02\x02\x44\x01\x00"
    head = b"GIF89a\x01\x00\x01\x00\x80\x00\x00" + bytes(6)
    return head + frame * (10 * MIB // len(frame)) + b";"


def broken() -> bytes:
    """A file whose frames are noise, which its decoder tries to make something of."""
    data = bytearray(clip(300))
    start = data.index(b"mdat") + 100
    end = data.index(b"moov", start) - 4
    data[start:end] = random.Random(0).randbytes(end - start)
    return bytes(data)


def sent(name: str, make: Callable[[], bytes], answers: frozenset[int] = REFUSED) -> None:
    made = functools.cache(lambda: video_chat(url(make())))

    @attack(name, answers=answers, make=made)
    async def send(attacker: Attacker) -> None:
        await asyncio.gather(*(attacker.post("/v1/chat/completions", made()) for _ in range(4)))


sent("a video file that claims a million frames", claiming_frames)
sent("a video file of 16,384 x 16,384 pixels", functools.partial(canvas, 16_384))
sent("a video file of 7,000 x 7,000 pixels", functools.partial(canvas, 7_000))
sent("10 MiB of a video file's frames of one pixel", many_frames)
sent("a video file of broken frames", broken)
sent("a video file of 3,000 frames behind one key frame", functools.partial(clip, 3000, "mp4", 640, 360))


@functools.cache
def unequal_lists() -> bytes:
    """Eight lists of 64 frames of one pixel, the last of which has two: all are opened before that is seen."""
    frames = ",".join([images.png_base64(1, 1)] * 63 + [images.png_base64(2, 1)])
    return video_chat(*[f"data:video/png;base64,{frames}"] * 8)


@attack("eight clips of 64 frames of one pixel, eight times at once", make=unequal_lists)
async def tiny_frames(attacker: Attacker) -> None:
    await asyncio.gather(*(attacker.post("/v1/chat/completions", unequal_lists()) for _ in range(8)))


async def signalled(attacker: Attacker, number: signal.Signals) -> asyncio.Task[Answer]:
    """A request with a file that takes seconds, whose process has got this signal."""
    body = video_chat(url(clip(3000, "mp4", 640, 360)))
    sending = asyncio.create_task(attacker.post("/v1/chat/completions", body))
    while not (found := decoding(attacker.target.pid)) and not sending.done():
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    for each in found:
        os.kill(each, number)
    return sending


def decoding(server: int) -> list[int]:
    """The processes that decode its videos."""
    return [each for each in process.tree(server) if b"video_worker" in Path(f"/proc/{each}/cmdline").read_bytes()]


@attack("a video file whose process is killed", once=True, make=lambda: clip(3000, "mp4", 640, 360))
async def killed(attacker: Attacker) -> None:
    answer = await (await signalled(attacker, signal.SIGKILL))
    if answer.status != 503:
        attacker.complain(f"the file is blamed for the end of its process: {answer.status}")


@attack(
    "a video file whose process is stopped, and nobody who waits", once=True, make=lambda: clip(3000, "mp4", 640, 360)
)
async def stopped(attacker: Attacker) -> None:
    sending = await signalled(attacker, signal.SIGSTOP)
    sending.cancel()
    await asyncio.wait([sending])
