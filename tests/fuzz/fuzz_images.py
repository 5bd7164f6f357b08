"""Image files and clips of them: refused in words, or RGB pixels at the cost that was told before."""

import base64

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.media.decoding import BYTES_PER_PIXEL, ImageLimits, open_image
from covervlm.server.media.video import VideoLimits, open_frames, video_part

TRACED = ("covervlm.server.media", "PIL")
LIMITS = ImageLimits(max_bytes=8192, max_pixels=2**21)
CLIP = VideoLimits(max_frames=8, max_bytes=8192, max_pixels=2**21)
BETWEEN_FRAMES = b"NEXT"


def target(data: bytes) -> None:
    frames = data.split(BETWEEN_FRAMES)
    try:
        if len(frames) == 1:
            encoded = open_image(data, LIMITS)
            told = BYTES_PER_PIXEL * encoded.width * encoded.height + encoded.decoding_bytes
            assert told <= 5 * BYTES_PER_PIXEL * LIMITS.max_pixels
            images = [encoded.part().image]
        else:
            url = "data:video/jpeg;base64," + ",".join(base64.b64encode(frame).decode() for frame in frames)
            opened = open_frames(url, CLIP, LIMITS)
            images = list(video_part(opened, 2.0).frames)
            assert len({image.size for image in images}) == 1
    except InvalidRequest as refused:
        assert refused.code in ("invalid_image", "image_too_large", "invalid_video", "video_too_large")
        assert str(refused).isprintable()
        return
    for image in images:
        assert image.mode == "RGB"
        assert 0 < image.width * image.height <= LIMITS.max_pixels
        assert image.getpixel((image.width - 1, image.height - 1)) is not None
