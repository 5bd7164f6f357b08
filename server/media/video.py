"""Video parts of a request to checked RGB frames, which come as a list of images, the way vLLM's API spells them."""

import hashlib
from dataclasses import dataclass

from covervlm.server.access import charge_image
from covervlm.server.engines.base import ImagePart, InvalidRequest, VideoPart
from covervlm.server.inflight import hold
from covervlm.server.media.images import FORMATS, ImageLimits, ImageLoader, decode_base64, image_part

FRAMES_PER_SECOND = 2.0
"""What a clip is taken for where the request does not say, as in Qwen's own pipeline."""

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

    async def load(self, url: str, *, fps: float | None, param: str) -> VideoPart:
        """The clip of a `video_url` part; raises as `ImageLoader.load`."""
        charge_image()
        fps = FRAMES_PER_SECOND if fps is None else fps
        clip = await self._images.run(video_part, url, fps, self._limits, self._images.limits, param=param)
        hold(3 * sum(frame.width * frame.height for frame in clip.frames))
        return clip


def video_part(url: str, fps: float, limits: VideoLimits, image_limits: ImageLimits) -> VideoPart:
    """A list of frames in a data URL to the clip that an engine takes. Raises InvalidRequest."""
    frames = _frames(url)
    if frames.count(",") >= limits.max_frames:
        raise _too_large(f"{frames.count(',') + 1} frames; this server takes {limits.max_frames} at most")
    encoded = frames.split(",")
    # The last group of each frame's base64 may hold up to two bytes of padding.
    if sum(len(frame) // 4 * 3 - 2 for frame in encoded) > limits.max_bytes:
        raise _too_large(f"more than {limits.max_bytes} bytes, the most this server takes")
    parts: list[ImagePart] = []
    for number, frame in enumerate(encoded, start=1):
        try:
            parts.append(image_part(decode_base64(frame, image_limits.max_bytes), image_limits))
        except InvalidRequest as error:
            raise InvalidRequest(f"Frame {number} of the video: {error}", code=error.code) from None
        width, height = parts[0].image.size
        if parts[-1].image.size != (width, height):
            raise _invalid(f"All frames of a video must have the same size, but frame {number} differs from the first.")
        if width * height * len(encoded) > limits.max_pixels:
            raise _too_large(f"more than {limits.max_pixels} pixels in all its frames, the most this server takes")
    digest = hashlib.sha256(f"video {fps!r}".encode())
    for part in parts:
        digest.update(bytes.fromhex(part.digest))
    return VideoPart(tuple(part.image for part in parts), digest.hexdigest(), fps)


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
