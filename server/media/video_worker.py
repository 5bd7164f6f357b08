"""Frames of a video file, decoded by FFmpeg in a process of its own: a file that breaks it ends no more than that.

Run as a script by `video_file.py`. Standard input: a `Task` as a line of JSON, the file, and a byte once its frames are
wanted. Standard output: an `Opening` as a line of JSON, then each frame as such a line and its RGB pixels; or, in place
of any of these lines, {"refused": why}.

Before a byte of the file is read, the process gives up opening files and sockets, writing files and starting processes
or threads; its processor time and its memory are limited.
"""

import contextlib
import io
import json
import math
import resource
import signal
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, BinaryIO

DEFAULT_FRAMES = 32
"""Of a clip where the request names no rate, as vLLM samples it."""
CODECS = ("h264", "hevc", "vp8", "vp9", "libdav1d", "av1", "mpeg4", "mjpeg", "gif")
"""FFmpeg's decoders that a file may ask for; libdav1d decodes AV1."""
OPENING_SECONDS, DECODING_SECONDS = 5, 30
"""Of processor time: until the file's frames are counted, and in all."""
OPENING_BYTES = 128 * 2**20
"""Memory, beside the file, until its frames are counted; FFmpeg decodes one or two to know their format."""
_MOST_FRAMES = 200_000
_MOST_SECONDS = 24 * 3600
_MOST_RATE = 1000
_HELD_FRAMES = 24
"""Frames that a decoder refers to (17 in H.264) or is about to hand out, as it stores them."""
_FEW_HELD_FRAMES = {"gif": 4, "mjpeg": 4, "mpeg4": 6, "vp8": 8}
"""Of decoders that refer to three at most."""
_DECODING_BYTES = 64 * 2**20
_MOST_DECODED_PIXELS = 24_000_000_000
"""Of all frames that must be decoded to get the wanted ones: six minutes of 1080p at 30 frames a second."""
_LEAST_PIXELS = 2**16
"""That any frame counts as, for what decoding takes besides its pixels."""


@dataclass(frozen=True)
class Task:
    """What is wanted of a file of `size` bytes in the container that FFmpeg calls `container`.

    fps: frames to a second, None for DEFAULT_FRAMES over the whole clip. The limits lower the rate. pixels, all_pixels:
    most of one frame and of all that are wanted.
    """

    size: int
    container: str
    fps: float | None
    frames: int
    pixels: int
    all_pixels: int


@dataclass(frozen=True)
class Opening:
    """What the file is found to hold: number and size of the wanted frames, `fps` of them to a second.

    bytes: memory that decoding takes.
    """

    frames: int
    width: int
    height: int
    fps: float | None
    bytes: int


class Refused(Exception):
    """Its only argument names one of the reasons that `video_file.py` has words for."""


def shown_at(times: Sequence[int], count: int) -> list[int]:
    """Indices of the frames that are on the screen at `count` moments, evenly from the first frame to the last.

    times: when each frame is first shown, ascending. Of a constant rate, but for the rounding of times to whole ticks,
    these are the frames that vLLM takes: linspace(0, frames - 1, count), rounded down.
    """
    last, first, span, between = len(times) - 1, times[0], times[-1] - times[0], max(1, count - 1)
    if all(abs((time - first) * last - index * span) <= last for index, time in enumerate(times)):
        return [k * last // between for k in range(count)]
    return [bisect_right(times, first + k * span // between) - 1 for k in range(count)]


def decoded_for(wanted: Sequence[int], keys: Sequence[int]) -> int:
    """How many frames are decoded for the wanted ones, from the key frame before each on or from the one before."""
    total, position = 0, 0
    for index in wanted:
        position = max(position, _key_before(keys, index))
        total += max(0, index + 1 - position)
        position = max(position, index + 1)
    return total


def _key_before(keys: Sequence[int], index: int) -> int:
    """The last key frame that is shown no later than this one; 0 where there is none."""
    return keys[max(0, bisect_right(keys, index) - 1)] if keys else 0


def seek_times(packets: Sequence[tuple[int, int, bool]], container: str) -> list[int]:
    """What to seek for each frame, if it is a key frame, so as to land on it: a container's index is made of one time.

    packets: of each frame, when it is shown, when it is decoded, and whether it is a key frame. FFmpeg looks into the
    index of MP4 and MOV, which holds when frames are decoded, for the time shown less the file's delay. Where the delay
    is none, that must not be when the next key frame is decoded.
    """
    if container == "matroska":
        return [time for time, _, _ in packets]
    if container != "mov":
        return [dts for _, dts, _ in packets]
    keys = sorted(dts for _, dts, key in packets if key)
    following = [keys[i] if (i := bisect_right(keys, dts)) < len(keys) else math.inf for _, dts, _ in packets]
    return [int(min(time, after - 1)) for (time, _, _), after in zip(packets, following, strict=True)]


class VideoFile:
    """Raises Refused, or what FFmpeg raises."""

    def __init__(self, data: bytes, task: Task) -> None:
        self._data, self._task = data, task
        with self._opened() as (container, stream):
            codec = stream.codec_context
            self._width, self._height = codec.width, codec.height
            if self._width * self._height > task.pixels:
                raise Refused("pixels")
            if self._width < 1 or self._height < 1 or codec.pix_fmt is None:
                raise Refused("damaged")
            self._held_frames = _FEW_HELD_FRAMES.get(codec.name, _HELD_FRAMES)
            self._pixel_bytes = max(1, math.ceil(codec.format.padded_bits_per_pixel / 8))
            self._tick = Fraction(stream.time_base)
            packets = _packets(container, stream)
        packets.sort()
        self._times = [time for time, _, _ in packets]
        self._keys = [i for i, (_, _, key) in enumerate(packets) if key]
        self._seeks = seek_times(packets, task.container)
        count, self.fps = self._sampling()
        self._wanted = shown_at(self._times, count)
        self._decoded = decoded_for(self._wanted, self._keys)
        if self._decoded * max(_LEAST_PIXELS, self._width * self._height) > _MOST_DECODED_PIXELS:
            raise Refused("work")

    @property
    def opening(self) -> Opening:
        pixels = self._width * self._height
        held = pixels * (self._held_frames * self._pixel_bytes + 3) + _DECODING_BYTES
        return Opening(len(self._wanted), self._width, self._height, self.fps, held)

    def frames(self) -> Iterator[Any]:
        """FFmpeg's frames, in order; one that stays on the screen for long may come twice."""
        left = 2 * self._decoded + 100  # what is decoded beside, because a container's index is coarser than it seems
        position, frame = 0, None
        with self._opened() as (container, stream):
            decoded = container.decode(stream)
            for index in self._wanted:
                if frame is not None and index < position:
                    yield frame
                    continue
                if (key := _key_before(self._keys, index)) > position:
                    container.seek(self._seeks[key], stream=stream)
                    decoded = container.decode(stream)
                for frame in decoded:
                    left -= 1
                    if left < 0:
                        raise Refused("work")
                    time = _shown(frame)
                    if time is not None and time >= self._times[index]:
                        break
                else:
                    raise Refused("damaged")
                position = index + 1
                if (frame.width, frame.height) != (self._width, self._height):
                    raise Refused("frame_size")
                yield frame

    def _sampling(self) -> tuple[int, float | None]:
        """How many frames, and how many of them to a second; None where a single one tells no rate."""
        task, total = self._task, len(self._times)
        seconds = float((self._times[-1] - self._times[0]) * self._tick)
        if not 0 <= seconds <= _MOST_SECONDS:
            raise Refused("times")
        count = min(total, task.frames, task.all_pixels // (self._width * self._height))
        if count < 1:
            raise Refused("all_pixels")
        if task.fps is None:
            count = min(count, DEFAULT_FRAMES)
        else:
            duration = seconds * total / max(1, total - 1)  # the last frame is shown for as long as the others
            count = max(1, min(count, math.floor(duration * task.fps + 1e-6)))
        if count == 1:
            return 1, None
        if (count - 1) > _MOST_RATE * seconds:
            raise Refused("times")
        return count, (count - 1) / seconds

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        import av

        limits = {
            "threads": "1",
            "max_pixels": str(self._task.pixels),
            "codec_whitelist": ",".join(CODECS),
            "format_whitelist": av.ContainerFormat(self._task.container, "r").name,
            "protocol_whitelist": "none",
        }
        with av.open(
            io.BytesIO(self._data), format=self._task.container, options=limits, metadata_errors="replace"
        ) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise Refused("no_video")
            if stream.codec_context is None or stream.codec_context.name not in CODECS:
                raise Refused("codec")
            stream.codec_context.options = {name: limits[name] for name in ("threads", "max_pixels")}
            stream.codec_context.thread_count = 1
            yield container, stream


def _shown(packet_or_frame: Any) -> int | None:
    """When it is on the screen; where AVI does not tell, FFmpeg counts, and calls it the time of decoding."""
    return packet_or_frame.dts if packet_or_frame.pts is None else packet_or_frame.pts


def _packets(container: Any, stream: Any) -> list[tuple[int, int, bool]]:
    """Of each frame, in the order of the file: when it is shown, when it is decoded, and whether it is a key frame."""
    packets = []
    for packet in container.demux(stream):
        time = _shown(packet)
        if not packet.size or packet.is_discard or time is None:
            continue
        packets.append((time, time if packet.dts is None else packet.dts, packet.is_keyframe))
        if len(packets) > _MOST_FRAMES:
            raise Refused("frames")
    if not packets:
        raise Refused("no_video")
    return packets


def _confine() -> None:
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        resource.setrlimit(limit, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # the three that are open
    resource.setrlimit(resource.RLIMIT_CPU, (OPENING_SECONDS, DECODING_SECONDS + 1))


def _limit_memory(used: int, more: int) -> None:
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))


def _address_space() -> int:
    """Bytes, which only Linux tells."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _say(out: BinaryIO, **message: Any) -> None:
    out.write(json.dumps(message).encode() + b"\n")


def _send(frame: Any, out: BinaryIO) -> None:
    picture = frame.reformat(format="rgb24", threads=1)
    plane = picture.planes[0]
    row, pixels = 3 * picture.width, memoryview(plane)
    _say(out, rotation=frame.rotation)
    for start in range(0, picture.height * plane.line_size, plane.line_size):
        out.write(pixels[start : start + row])


def main(given: BinaryIO, out: BinaryIO) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the server, which ends its requests in good order
        signal.signal(number, signal.SIG_IGN)
    import logging  # noqa: F401  # here and below: what PyAV would import once it cannot open files any more

    import av
    import av.subtitles.codeccontext
    import av.subtitles.stream

    task = Task(**json.loads(given.readline()))
    data = given.read(task.size)
    used = _address_space()
    _confine()
    _limit_memory(used, OPENING_BYTES)
    try:
        file = VideoFile(data, task)
        _say(out, **asdict(file.opening))
        out.flush()
        if not given.read(1):
            return
        resource.setrlimit(resource.RLIMIT_CPU, (DECODING_SECONDS, DECODING_SECONDS + 1))
        _limit_memory(used, file.opening.bytes)
        for frame in file.frames():
            _send(frame, out)
    except Refused as refused:
        _say(out, refused=refused.args[0])
    except MemoryError:
        _say(out, refused="memory")
    except (av.FFmpegError, ArithmeticError, LookupError, ValueError):
        _say(out, refused="damaged")
    out.flush()


if __name__ == "__main__":
    sys.path.append(sys.argv[1])  # where PyAV lies; nothing else is looked for in the environment
    main(sys.stdin.buffer, sys.stdout.buffer)
