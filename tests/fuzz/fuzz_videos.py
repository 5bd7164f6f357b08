"""Video files: refused, or frames of the size and number that were told before."""

import av

from covervlm.server.media.video_worker import Refused, Task, VideoFile

TRACED = ("covervlm.server.media",)
PIXELS = 2**14
CONTAINERS = {b"G": "gif", b"R": "avi", b"\x1a": "matroska"}


def target(data: bytes) -> None:
    task = Task(len(data), CONTAINERS.get(data[:1], "mov"), 2.0, frames=8, pixels=PIXELS, all_pixels=4 * PIXELS)
    try:
        file = VideoFile(data, task)
        opening = file.opening
        assert 0 < opening.width * opening.height <= PIXELS
        assert 0 < opening.frames <= task.frames
        assert opening.frames * opening.width * opening.height <= task.all_pixels
        frames = list(file.frames())
        assert len(frames) == opening.frames
        assert all((frame.width, frame.height) == (opening.width, opening.height) for frame in frames)
    except (Refused, av.FFmpegError, ArithmeticError, LookupError, ValueError):  # what `main` takes for a refusal
        return
