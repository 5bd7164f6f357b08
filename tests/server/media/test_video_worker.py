"""Which frames of a file are wanted and how many must be decoded for them; and what the decoding process gave up."""

import bisect
import random
import subprocess
import sys

import av
import numpy as np
import pytest

from covervlm.server.media import video_worker
from covervlm.server.media.video_worker import Refused, Task, VideoFile, decoded_for, seek_times, shown_at
from tests.server.media.video_files import encoded, number_of, numbered


def task(data, container="mov", **wanted):
    limits = {"frames": 64, "pixels": 10**8, "all_pixels": 10**8}
    return Task(size=len(data), container=container, fps=None, **limits | wanted)


@pytest.mark.parametrize("frames", [1, 2, 3, 31, 32, 33, 100, 101, 7919])
@pytest.mark.parametrize("count", [1, 2, 3, 32, 64])
@pytest.mark.parametrize("interval", [1, 512, 33])
def test_a_constant_rate_is_sampled_as_vllm_does(frames, count, interval):
    count = min(count, frames)
    times = [7 + interval * i for i in range(frames)]
    assert shown_at(times, count) == np.linspace(0, frames - 1, count, dtype=int).tolist()


@pytest.mark.parametrize("rate", [24, 25, 29.97, 30, 60])
@pytest.mark.parametrize("frames", [32, 100, 1003])
def test_times_in_whole_milliseconds_are_sampled_as_vllm_does(rate, frames):
    times = [round(1000 * i / rate) for i in range(frames)]
    assert shown_at(times, 32) == np.linspace(0, frames - 1, 32, dtype=int).tolist()


def test_of_an_uneven_rate_the_frame_on_the_screen_is_taken():
    rng = random.Random(0)
    for _ in range(200):
        times = sorted(rng.sample(range(10_000), rng.randint(4, 60)))
        count = rng.randint(2, 70)
        moments = [times[0] + k * (times[-1] - times[0]) / (count - 1) for k in range(count)]
        expected = [max(i for i, time in enumerate(times) if time <= int(moment)) for moment in moments]
        assert shown_at(times, count) == expected


def test_frames_to_decode_are_counted_as_a_player_would_decode_them():
    rng = random.Random(1)
    for _ in range(300):
        total = rng.randint(1, 200)
        keys = sorted({0} | set(rng.sample(range(total), rng.randint(0, total))))
        wanted = sorted(rng.choices(range(total), k=rng.randint(1, 32)))
        decoded, position = 0, 0
        for index in wanted:
            key = keys[bisect.bisect_right(keys, index) - 1]
            if key > position:
                position = key  # a seek
            while position <= index:
                position, decoded = position + 1, decoded + 1
        assert decoded_for(wanted, keys) == decoded


def test_a_clip_of_one_key_frame_that_takes_too_much_work_is_refused_before_it_is_decoded(monkeypatch):
    frames = [numbered(i) for i in range(40)]
    one, many = encoded(frames, gop=1000), encoded(frames, gop=2)
    monkeypatch.setattr(video_worker, "_MOST_DECODED_PIXELS", 20 * 2**16)
    assert VideoFile(many, task(many, frames=4)).opening.frames == 4
    with pytest.raises(Refused, match="work"):
        VideoFile(one, task(one, frames=4))


def test_a_clip_of_too_many_frames_is_refused(monkeypatch):
    data = encoded([numbered(i) for i in range(40)])
    monkeypatch.setattr(video_worker, "_MOST_FRAMES", 39)
    with pytest.raises(Refused, match="frames"):
        VideoFile(data, task(data))


@pytest.mark.parametrize("container", ["mp4", "mov"])
@pytest.mark.parametrize("bf", ["0", "1", "3"])
def test_of_an_mp4_no_frame_is_decoded_before_the_key_frame_that_is_sought(container, bf):
    data = encoded([numbered(i) for i in range(200)], container, gop=8, bf=bf)
    file = VideoFile(data, task(data))
    for key in file._keys:
        with file._opened() as (clip, stream):
            clip.seek(file._seeks[key], stream=stream)
            assert number_of(next(clip.decode(stream)).to_image()) == key


def test_a_time_that_is_sought_never_leads_to_a_later_key_frame():
    rng = random.Random(2)
    for _ in range(300):
        shown = sorted(rng.sample(range(1000), 40))
        packets = [(time, time - rng.randint(0, 60), rng.random() < 0.3) for time in shown]
        for (_, dts, key), sought in zip(packets, seek_times(packets, "mov"), strict=True):
            later = [other for _, other, is_key in packets if is_key and other > dts]
            assert not key or all(sought < other for other in later)


def test_a_short_mp4_of_many_key_frames_is_not_too_much_work():
    data = encoded([numbered(i, (80, 48)) for i in range(400)], rate=8, gop=8, bf="2")
    frames = VideoFile(data, task(data)).frames()
    assert [number_of(frame.to_image()) for frame in frames] == np.linspace(0, 399, 32, dtype=int).tolist()


def test_only_as_many_frames_are_decoded_as_were_counted(monkeypatch):
    data = encoded([numbered(i) for i in range(300)], gop=1000)
    file = VideoFile(data, task(data, frames=2))
    file._decoded = 50  # as if the file had told of key frames that there are not
    with pytest.raises(Refused, match="work"):
        list(file.frames())


def test_another_protocol_or_container_cannot_be_reached_from_a_file(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(encoded([numbered(0)]))
    playlist = f"ffconcat version 1.0\nfile '{tmp_path}/clip.mp4'\n".encode()
    for container in ("mov", "matroska", "avi", "gif"):
        with pytest.raises(av.FFmpegError):
            VideoFile(playlist, task(playlist, container))


CONFINED = """
import socket, sys, threading
sys.path.append(sys.argv[1])
import video_worker
video_worker._confine()
def tried(call):
    try:
        call()
    except OSError:
        return "refused"
    return "done"
print(*(tried(call) for call in (lambda: open("/etc/passwd"), lambda: open("/proc/self/mem"), socket.socket)))
"""


def test_the_process_can_open_neither_files_nor_sockets():
    folder = video_worker.__file__.rpartition("/")[0]
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", CONFINED, folder], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["refused"] * 3


def test_memory_beyond_the_limit_is_not_to_be_had():
    folder = video_worker.__file__.rpartition("/")[0]
    code = (
        "import sys; sys.path.append(sys.argv[1]); import video_worker as w\n"
        "w._limit_memory(w._address_space(), 2**26)\n"
        "small = bytes(2**24)\n"
        "try: bytes(2**27)\n"
        "except MemoryError: print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-S", "-P", "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused"]
