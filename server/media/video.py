"""Video parts of a request to checked RGB frames: lists of images, the way vLLM's API spells them, or video files."""

import asyncio
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from PIL import Image

from covervlm.server.core.caller import Caller
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import ImagePart, VideoPart
from covervlm.server.media.data_urls import decode_base64, url_scheme
from covervlm.server.media.decoding import FORMATS, Encoded, ImageLimits, image_digest, open_image
from covervlm.server.media.images import ImageLoader
from covervlm.server.media.kinds import VIDEO
from covervlm.server.media.video_file import FRAMES_FORM, VideoProcess
from covervlm.server.media.video_worker import OPENING_BYTES

FRAMES_PER_SECOND = 2.0
"""Assumed of a list of frames where the request does not say, as in Qwen's own pipeline; and of a single frame."""

_FRAME_TYPES = frozenset(f"video/{name.lower()}" for name in (*FORMATS, "JPG") if name != "GIF")  # which is a file
_LONGEST_HEADER = 1000
"""Characters of a URL in which its media type ends."""


@dataclass(frozen=True)
class VideoLimits:
    """Most frames of one clip, their encoded size in bytes (of a file: its size) and their pixels, over all frames."""

    max_frames: int
    max_bytes: int
    max_pixels: int


class VideoLoader:
    """Decodes clips in the image loader's threads and within the image's own limits."""

    def __init__(self, images: ImageLoader, limits: VideoLimits) -> None:
        self._images = images
        self._limits = limits

    async def load(self, url: str, *, fps: float | None, param: str, caller: Caller) -> VideoPart:
        """The clip of a `video_url` part; raises as `ImageLoader.load`."""
        caller.charge_image()
        is_list = _is_list(url)
        frames = min(url.count(","), self._limits.max_frames) if is_list else 1
        if delay := caller.pace.images(frames):
            await asyncio.sleep(delay)
        if not is_list:
            return await self._file(url, fps, param, caller)
        fps = FRAMES_PER_SECOND if fps is None else fps
        read = partial(open_frames, url, self._limits, self._images.limits)
        return await self._images.run(read, partial(video_part, fps=fps), 2 * len(url), param=param, caller=caller)

    async def _file(self, url: str, fps: float | None, param: str, caller: Caller) -> VideoPart:
        """The clip in a file, sampled at `fps`; the part's rate is the one that comes of it."""
        limits, process = self._limits, VideoProcess()
        copied = limits.max_bytes if url_scheme(url) in ("http", "https", "file") else len(url)
        with caller.holding() as hold:
            try:
                read, size = await self._images.source(url, limits.max_bytes, VIDEO, caller, hold)
            except InvalidRequest as error:
                error.param = param
                raise
            try:
                return await self._images.run(
                    lambda: process.open(
                        read(),
                        fps=fps,
                        frames=limits.max_frames,
                        pixels=min(self._images.limits.max_pixels, limits.max_pixels),
                        all_pixels=limits.max_pixels,
                    ),
                    lambda _: _clip(_parts(process.frames()), process.fps or fps or FRAMES_PER_SECOND),
                    size + copied + OPENING_BYTES,
                    param=param,
                    caller=caller,
                    stop=process.kill,
                )
            finally:
                process.kill()
                await asyncio.to_thread(process.close)


def open_frames(url: str, limits: VideoLimits, image_limits: ImageLimits) -> list[Encoded]:
    """The frames of a list in a data URL, of which only the headers are read. Raises InvalidRequest."""
    frames = _frames(url)
    if frames.count(",") >= limits.max_frames:
        raise _too_large(f"{frames.count(',') + 1} frames; this server takes {limits.max_frames} at most")
    encoded = frames.split(",")
    # The last group of each frame's base64 may hold up to two bytes of padding.
    if sum(len(frame) // 4 * 3 - 2 for frame in encoded) > limits.max_bytes:
        raise _too_large(f"more than {limits.max_bytes} bytes, the most this server takes")
    opened: list[Encoded] = []
    for number, frame in enumerate(encoded, start=1):
        try:
            opened.append(open_image(decode_base64(frame, image_limits.max_bytes), image_limits))
        except InvalidRequest as error:
            raise _of_frame(number, error) from None
        width, height = opened[0].width, opened[0].height
        if sorted((opened[-1].width, opened[-1].height)) != sorted((width, height)):  # one may still be turned upright
            raise _unequal(number)
        if width * height * len(encoded) > limits.max_pixels:
            raise _too_large(f"more than {limits.max_pixels} pixels in all its frames, the most this server takes")
    return opened


def video_part(encoded: Sequence[Encoded], fps: float) -> VideoPart:
    """Opened frames to the clip that an engine takes. Raises InvalidRequest."""
    return _clip(_decoded(encoded), fps)


def _decoded(encoded: Sequence[Encoded]) -> Iterator[ImagePart]:
    for number, frame in enumerate(encoded, start=1):
        try:
            yield frame.part()
        except InvalidRequest as error:
            raise _of_frame(number, error) from None


def _parts(frames: Iterable[Image.Image]) -> Iterator[ImagePart]:
    return (ImagePart(frame, image_digest(frame)) for frame in frames)


def _clip(frames: Iterable[ImagePart], fps: float) -> VideoPart:
    digest, images = hashlib.sha256(f"video {fps!r}".encode()), []
    for number, part in enumerate(frames, start=1):
        images.append(part.image)
        if part.image.size != images[0].size:
            raise _unequal(number)
        digest.update(bytes.fromhex(part.digest))
    return VideoPart(tuple(images), digest.hexdigest(), fps)


def _unequal(number: int) -> InvalidRequest:
    return _invalid(f"All frames of a video must have the same size, but frame {number} differs from the first.")


def _of_frame(number: int, error: InvalidRequest) -> InvalidRequest:
    return InvalidRequest(f"Frame {number} of the video: {error}", code=error.code)


def _is_list(url: str) -> bool:
    """Whether a data URL's media type is that of frames."""
    scheme, _, rest = url[:_LONGEST_HEADER].strip().partition(":")
    return scheme.lower() == "data" and re.split("[;,]", rest, maxsplit=1)[0].strip().lower() in _FRAME_TYPES


def _frames(url: str) -> str:
    header, comma, frames = url.strip().partition(",")
    if not comma or "base64" not in [field.strip().lower() for field in header.split(";")]:
        raise _invalid(f"The data URL must have the form {FRAMES_FORM}.")
    return frames


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_video")


def _too_large(what: str) -> InvalidRequest:
    return InvalidRequest(f"The video has {what}.", code="video_too_large")
