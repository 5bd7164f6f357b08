"""A video file to RGB frames by way of a process of its own, which `video_worker.py` describes.

FFmpeg parses strangers' bytes in C: there a crafted file may crash it, keep it busy or fill memory, and only that
file's request fails.
"""

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from PIL import Image

from covervlm.server.core.errors import EngineError, EngineOverloaded, InvalidRequest
from covervlm.server.media import video_worker
from covervlm.server.media.kinds import VIDEO
from covervlm.server.media.video_container import container
from covervlm.server.media.video_worker import DECODING_SECONDS, Opening, Task

FORMATS = "MP4, MOV, WebM, MKV, AVI, GIF"
FRAMES_FORM = "data:video/jpeg;base64,FRAME,FRAME,... with each frame's image file in base64"
_LONGEST_LINE = 4096
_ENDING_SECONDS = 10
"""In which a process ends that has closed its output."""
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals by which no file ends its process, but the machine out of memory does, or a person."""
_TURNED = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}
_WORDS = {
    "damaged": "it is damaged or cut off; send the whole file, or save it anew",
    "no_video": "there is no video in it",
    "codec": "its codec is not one that this server decodes: H.264, HEVC, VP8, VP9, AV1, MPEG-4, Motion JPEG or GIF",
    "times": "its frames lie more than a day apart, or there are more than 1,000 in a second",
    "frame_size": "its frames differ in size; save it anew in one size",
}
_TOO_LARGE = {
    "frames": "it has more than 200,000 frames; send a part of it",
    "work": f"its frames take more than {DECODING_SECONDS} seconds of processor time to decode; send a part of it, "
    "make it smaller, or save it with more key frames",
    "memory": "decoding it takes more memory than its size lets expect; save it anew",
}


@dataclass(frozen=True)
class FileFrame:
    """A frame that is not decoded yet."""

    width: int
    height: int
    decoding_bytes: int


class VideoProcess:
    """Decodes one file, by `open` and then `frames`, in a process that ends with them or is killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._opening: Opening | None = None
        self._killed = False
        self._lock = threading.Lock()

    def open(self, data: bytes, *, fps: float | None, frames: int, pixels: int, all_pixels: int) -> list[FileFrame]:
        """The frames that there will be, of which none is decoded.

        Raises InvalidRequest, or EngineOverloaded where the process cannot be started or something else ends it.
        """
        task = Task(len(data), _container(data), fps, frames, pixels, all_pixels)
        self._start()
        self._send(json.dumps(asdict(task)).encode() + b"\n", data)
        opening = self._opening = _checked(self._message(task), task)
        return [FileFrame(opening.width, opening.height, opening.bytes)] * opening.frames

    @property
    def fps(self) -> float | None:
        """Of the frames; None where there is only one, which tells none."""
        return None if self._opening is None else self._opening.fps

    def frames(self) -> Iterator[Image.Image]:
        """The frames, upright. Raises as `open` does."""
        opening = self._opening
        assert opening is not None
        self._send(b"\n")
        pixels = bytearray(3 * opening.width * opening.height)
        for _ in range(opening.frames):
            turn = self._message().get("rotation")
            if self._output.readinto(pixels) < len(pixels):  # type: ignore[attr-defined]
                raise self._ended()
            frame = Image.frombytes("RGB", (opening.width, opening.height), pixels)
            turned = _TURNED.get(turn % 360) if isinstance(turn, int) else None
            yield frame if turned is None else frame.transpose(turned)

    def kill(self) -> None:
        """Ends the process, and with it what another thread waits for."""
        with self._lock:
            self._killed = True
            if self._process is not None:
                self._process.kill()

    def close(self) -> None:
        """Kills the process and waits for its end."""
        self.kill()
        if self._process is not None:
            with contextlib.suppress(BrokenPipeError), self._process:  # what it has not read is for nobody
                pass

    @property
    def _output(self) -> IO[bytes]:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout

    def _start(self) -> None:
        command = [sys.executable, "-s", "-S", "-P", str(video_worker.__file__), _library()]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}, cwd="/"
            )
        except OSError:  # too many open files, processes, or too little memory
            message = "The server has no room for a process that decodes the video; try again shortly."
            raise EngineOverloaded(message, retry_after=1) from None
        with self._lock:
            self._process = process
            if self._killed:
                process.kill()

    def _send(self, *pieces: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            for piece in pieces:
                self._process.stdin.write(piece)
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # its end is told by what it says, or does not say

    def _message(self, task: Task | None = None) -> dict[str, Any]:
        """The next line. Raises as `open` does where the file is refused, or the process has ended."""
        line = self._output.readline(_LONGEST_LINE)
        if not line:
            raise self._ended()
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise self._refusal("damaged")
        if "refused" in message:
            raise self._refusal(str(message["refused"]), task)
        return message

    def _ended(self) -> EngineError:
        """Why the process has said its last: the file's doing, or that of whoever else ends processes."""
        process = self._process
        assert process is not None
        try:
            status = process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            return self._refusal("damaged")
        if -status in _FROM_OUTSIDE:
            message = "The process that decoded the video was ended, for want of memory or by hand; try again shortly."
            return EngineOverloaded(message, retry_after=1)
        return self._refusal("work" if -status == signal.SIGXCPU else "damaged")

    def _refusal(self, why: str, task: Task | None = None) -> InvalidRequest:
        if why == "pixels" and task is not None:
            return VIDEO.too_large(task.pixels, "pixels in a frame")
        if why == "all_pixels" and task is not None:
            return VIDEO.too_large(task.all_pixels, "pixels in a frame")
        if why in _TOO_LARGE:
            return _refused(_TOO_LARGE[why], "video_too_large")
        return _refused(_WORDS.get(why, _WORDS["damaged"]), "invalid_video")


def _checked(message: dict[str, Any], task: Task) -> Opening:
    """What the process says, which a file may have taken over. Raises InvalidRequest where that cannot be."""
    try:
        opening = Opening(**message)
        pixels = opening.width * opening.height
        if (
            all(type(number) is int and number > 0 for number in (opening.width, opening.height, opening.bytes))
            and 0 < opening.frames <= task.frames
            and pixels <= task.pixels
            and pixels * opening.frames <= task.all_pixels
            and (opening.fps is None or 0 < opening.fps < 10_000)
        ):
            return opening
    except TypeError:
        pass
    raise _refused(_WORDS["damaged"], "invalid_video")


def _container(data: bytes) -> str:
    """FFmpeg's name of the container. Raises InvalidRequest."""
    if (name := container(data)) is not None:
        return name
    raise VIDEO.invalid(
        f"The data is not a video in one of the formats {FORMATS}; convert it, or send the clip's "
        f"frames: {FRAMES_FORM}."
    )


@cache
def _library() -> str:
    """The folder that PyAV is in. Raises InvalidRequest where there is none."""
    found = find_spec("av")
    if found is None or found.origin is None:
        raise InvalidRequest(
            "This server decodes no video files, for want of PyAV (where it runs: pip install 'covervlm[video]'); "
            f"send the clip's frames: {FRAMES_FORM}.",
            code="no_video_decoder",
        )
    return str(Path(found.origin).parents[1])


def _refused(why: str, code: str) -> InvalidRequest:
    return InvalidRequest(f"The video cannot be read: {why}.", code=code)
