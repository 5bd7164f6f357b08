"""Video parts of a request to checked RGB frames, which come as a list of images, the way vLLM's API spells them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from covervlm.server.core.caller import Caller
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import VideoPart
from covervlm.server.media.data_urls import decode_base64
from covervlm.server.media.decoding import FORMATS, Encoded, ImageLimits, open_image
from covervlm.server.media.images import ImageLoader

FRAMES_PER_SECOND = 2.0
"""Assumed of a clip where the request does not say, as in Qwen's own pipeline."""

_FRAME_TYPES = frozenset(f"video/{name.lower()}" for name in (*FORMATS, "JPG"))
_FORM = "data:video/jpeg;base64,FRAME,FRAME,... with each frame's image file in base64"


@dataclass(frozen=True)
class VideoLimits:
    """Most frames of one clip, their encoded size in bytes and their pixels, both over all frames."""

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
        fps = FRAMES_PER_SECOND if fps is None else fps
        read = partial(open_frames, url, self._limits, self._images.limits)
        return await self._images.run(read, partial(video_part, fps=fps), 2 * len(url), param=param, caller=caller)


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
    digest, images = hashlib.sha256(f"video {fps!r}".encode()), []
    for number, frame in enumerate(encoded, start=1):
        try:
            part = frame.part()
        except InvalidRequest as error:
            raise _of_frame(number, error) from None
        images.append(part.image)
        if part.image.size != images[0].size:
            raise _unequal(number)
        digest.update(bytes.fromhex(part.digest))
    return VideoPart(tuple(images), digest.hexdigest(), fps)


def _unequal(number: int) -> InvalidRequest:
    return _invalid(f"All frames of a video must have the same size, but frame {number} differs from the first.")


def _of_frame(number: int, error: InvalidRequest) -> InvalidRequest:
    return InvalidRequest(f"Frame {number} of the video: {error}", code=error.code)


def _frames(url: str) -> str:
    scheme, colon, rest = url.strip().partition(":")
    header, comma, frames = rest.partition(",")
    media_type, *parameters = [field.strip().lower() for field in header.split(";")]
    if not colon or scheme.lower() != "data":
        raise _invalid(f"Videos come as their frames in one data URL: {_FORM}.")
    if media_type not in _FRAME_TYPES:
        raise _invalid(f"This server decodes no video files; send the clip's frames: {_FORM}.")
    if not comma or "base64" not in parameters:
        raise _invalid(f"The data URL must have the form {_FORM}.")
    return frames


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_video")


def _too_large(what: str) -> InvalidRequest:
    return InvalidRequest(f"The video has {what}.", code="video_too_large")
