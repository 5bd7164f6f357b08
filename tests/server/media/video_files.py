"""Video files made by PyAV, whose frames are known or carry their number."""

import base64
import io
from fractions import Fraction

import av
import numpy as np
from PIL import Image

SIZE = (64, 48)
BLOCK = 8
"""Pixels on a side of the blocks, black or white, that spell a frame's number; no codec blurs them away."""


def numbered(number: int, size=SIZE) -> Image.Image:
    """A grey frame whose first ten blocks along its top are the number in binary."""
    pixels = np.full((size[1], size[0], 3), 128, np.uint8)
    for place in range(size[0] // BLOCK):
        pixels[: 2 * BLOCK, BLOCK * place : BLOCK * (place + 1)] = 255 * (number >> place & 1)
    return Image.fromarray(pixels)


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))


def number_of(frame: Image.Image) -> int:
    """What `numbered` has written."""
    grey = np.asarray(frame.convert("L"), dtype=int)
    blocks = (grey[4:12, BLOCK * place + 2 : BLOCK * place + 6].mean() > 128 for place in range(frame.width // BLOCK))
    return sum(int(one) << place for place, one in enumerate(blocks))


def encoded(
    frames, container="mp4", codec="libx264", pixels="yuv420p", rate=25, times=None, gop=12, rotation=None, **options
) -> bytes:
    """A file of these images. times: when each is shown, in milliseconds, in place of a constant rate."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt, stream.gop_size, stream.thread_count = pixels, gop, 1
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_image(image)
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return file.getvalue()


LOSSLESS = {"codec": "libx264rgb", "pixels": "rgb24", "qp": "0"}
KINDS = {
    "mp4, H.264": {},
    "mp4, H.264 of one key frame": {"gop": 1000},
    "mov, H.264": {"container": "mov", "bf": "3"},
    "mkv, H.264": {"container": "matroska", "bf": "3"},
    "mp4, HEVC": {"codec": "libx265", "x265-params": "log-level=none:pools=none:keyint=10"},
    "mp4, AV1": {"codec": "libsvtav1", "preset": "13", "svtav1-params": "lp=1"},
    "webm, VP8": {"container": "webm", "codec": "libvpx"},
    "webm, VP9": {"container": "webm", "codec": "libvpx-vp9", "deadline": "realtime"},
    "avi, MPEG-4": {"container": "avi", "codec": "mpeg4", "bf": "2"},
    "avi, Motion JPEG": {"container": "avi", "codec": "mjpeg", "pixels": "yuvj420p"},
    "gif": {"container": "gif", "codec": "gif", "pixels": "rgb8"},
}


def video_url(data: bytes, media_type: str = "video/mp4") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
