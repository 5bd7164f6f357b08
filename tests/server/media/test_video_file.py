"""Files of every kind to the frames that vLLM would take, by a process that a file may break and the server not."""

import gc
import signal
import subprocess
import sys
import warnings

import av
import numpy as np
import pytest
from PIL import Image

from covervlm.server.core.errors import EngineOverloaded, InvalidRequest
from covervlm.server.media import video_file, video_worker
from covervlm.server.media.video_file import VideoProcess
from tests.server.media.video_files import KINDS, LOSSLESS, encoded, noise, number_of, numbered

LIMITS = {"frames": 64, "pixels": 10**7, "all_pixels": 10**8}


def decoded(data, fps=None, **limits):
    """Frames and their rate."""
    process = VideoProcess()
    try:
        process.open(data, fps=fps, **LIMITS | limits)
        return list(process.frames()), process.fps
    finally:
        process.close()


def refused(data, **limits):
    with pytest.raises(InvalidRequest) as error:
        decoded(data, **limits)
    return error.value.code, str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_32_frames_over_the_whole_clip_are_those_that_vllm_takes(kind):
    data = encoded([numbered(i) for i in range(100)], **KINDS[kind])
    frames, fps = decoded(data)
    assert [number_of(frame) for frame in frames] == np.linspace(0, 99, 32, dtype=int).tolist()
    assert fps == pytest.approx(31 / (99 / 25), rel=1e-3)


@pytest.mark.parametrize(("fps", "count"), [(0.01, 1), (2, 8), (1000, 64)])
def test_a_request_says_how_many_frames_to_a_second(fps, count):
    frames, got = decoded(encoded([numbered(i) for i in range(100)]), fps=fps)
    assert [number_of(frame) for frame in frames] == np.linspace(0, 99, count, dtype=int).tolist()
    assert got == (pytest.approx((count - 1) * 25 / 99) if count > 1 else None)


@pytest.mark.parametrize("limit", [{"frames": 5}, {"all_pixels": 5 * 64 * 48}, {"all_pixels": 6 * 64 * 48 - 1}])
def test_the_servers_limits_lower_the_rate(limit):
    frames, fps = decoded(encoded([numbered(i) for i in range(100)]), fps=25, **limit)
    assert [number_of(frame) for frame in frames] == [0, 24, 49, 74, 99]
    assert fps == pytest.approx(4 / (99 / 25))


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_of_frames_at_uneven_times_those_on_the_screen_are_taken(container):
    times = [0, 40, 80, 1000, 2000, 2040, 3000, 4000]
    data = encoded([numbered(i) for i in range(8)], container=container, times=times, gop=3)
    frames, fps = decoded(data, frames=5)
    assert [number_of(frame) for frame in frames] == [0, 3, 4, 6, 7]
    assert fps == pytest.approx(1)
    repeated, fps = decoded(data[:], frames=8)
    expected = [max(i for i, time in enumerate(times) if time <= k * 4000 // 7) for k in range(8)]
    assert [number_of(frame) for frame in repeated] == expected
    assert fps == pytest.approx(7 / 4)


def test_a_lossless_file_keeps_every_pixel():
    pictures = [noise(i) for i in range(20)]
    frames, _ = decoded(encoded(pictures, gop=4, **LOSSLESS))
    assert all(np.array_equal(frame, picture) for frame, picture in zip(frames, pictures, strict=True))


@pytest.mark.parametrize("gop", [7, 1000])
@pytest.mark.parametrize(("container", "codec"), [("mp4", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4")])
def test_frames_that_are_sought_are_those_of_a_clip_that_is_read_through(gop, container, codec, tmp_path):
    pictures = [noise(i) for i in range(60)]
    data = encoded(pictures, container=container, codec=codec, gop=gop, bf="2" if codec != "libvpx-vp9" else "0")
    (tmp_path / "clip").write_bytes(data)
    with av.open(str(tmp_path / "clip")) as clip:
        whole = [frame.to_image() for frame in clip.decode(video=0)]
    frames, _ = decoded(data, frames=6)
    assert len(whole) == 60
    for frame, index in zip(frames, (0, 11, 23, 35, 47, 59), strict=True):
        assert np.array_equal(frame, whole[index])


@pytest.mark.parametrize(("rotation", "turn"), [(90, "ROTATE_90"), (180, "ROTATE_180"), (-90, "ROTATE_270"), (0, None)])
def test_a_clip_that_a_telephone_held_upright_is_turned_as_players_do(rotation, turn):
    picture = noise(0)
    [frame], _ = decoded(encoded([picture], rotation=rotation, **LOSSLESS))
    expected = picture.transpose(Image.Transpose[turn]) if turn else picture
    assert np.array_equal(frame, expected)


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv420p10le", "gray"])
def test_colours_come_out_as_they_went_in(pixels):
    codec = {"codec": "libx264", "qp": "1"}
    grey = pixels == "gray"
    for colour in [(128, 128, 128)] if grey else [(200, 30, 60), (20, 160, 220)]:
        [frame], _ = decoded(encoded([Image.new("RGB", (64, 48), colour)], pixels=pixels, **codec))
        assert np.abs(np.asarray(frame, int) - colour).max() <= 5


def sound(container="mp4"):
    import io

    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return file.getvalue()


def claiming(data, width, height):
    """An MP4 whose headers tell of another size."""
    at = data.index(b"avc1", data.index(b"stsd")) + 28
    return data[:at] + width.to_bytes(2) + height.to_bytes(2) + data[at + 4 :]


WRONG = {
    "nothing known": (lambda: b"MThd" + bytes(100), "one of the formats MP4, MOV, WebM, MKV, AVI, GIF"),
    "a playlist": (lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "one of the formats"),
    "a list of files": (lambda: b"ffconcat version 1.0\nfile '/etc/passwd'\n", "one of the formats"),
    "a header alone": (lambda: b"\0\0\0\x20ftypisom" + bytes(100), "damaged"),
    "sound alone": (sound, "there is no video in it"),
    "another codec": (lambda: encoded([numbered(0)], "matroska", "ffv1"), "its codec is not one"),
    "a file cut off": (lambda: encoded([numbered(i) for i in range(9)])[:1500], "damaged"),
    "noise for frames": (
        lambda: (
            (data := encoded([numbered(i) for i in range(9)]))[: data.index(b"mdat") + 4]
            + bytes(range(256)) * 40
            + data[data.index(b"moov") - 4 :]
        ),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_video_is_refused_and_says_why(wrong):
    make, words = WRONG[wrong]
    code, message = refused(make())
    assert code == "invalid_video"
    assert words in message


@pytest.mark.parametrize("limits", [{"pixels": 64 * 48 - 1}, {"pixels": 10**6, "all_pixels": 64 * 48 - 1}])
def test_a_frame_beyond_the_limits_is_refused(limits):
    code, message = refused(encoded([numbered(0)]), **limits)
    assert code == "video_too_large"
    assert str(64 * 48 - 1) in message


def test_a_size_that_only_the_container_claims_does_not_get_past_the_limits():
    large = encoded([Image.new("RGB", (640, 480))])
    assert refused(claiming(large, 64, 48), pixels=64 * 48)[0] in ("video_too_large", "invalid_video")


def worker(monkeypatch, tmp_path, code):
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, resource, signal, sys\n"
        "sys.stdin.buffer.read(json.loads(sys.stdin.buffer.readline())['size'])\n" + code
    )
    monkeypatch.setattr(video_worker, "__file__", str(script))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "damaged"),
        ("sys.exit(1)", "damaged"),
        ("print('[1]')", "damaged"),
        ("print('[' * 10**6)", "damaged"),
        ("""print('{"frames": 65, "width": 8, "height": 8, "fps": 1.0, "bytes": 9}')""", "damaged"),
        ("""print('{"frames": 1, "width": 10000, "height": 8000, "fps": 1.0, "bytes": 9}')""", "damaged"),
        ("""print('{"frames": 1, "width": "8", "height": 8, "fps": 1.0, "bytes": 9}')""", "damaged"),
        ("""print('{"frames": 2, "width": 8, "height": 8, "fps": 0, "bytes": 9}')""", "damaged"),
        ("""print('{"frames": 2}')""", "damaged"),
        ("""print('{"refused": ["x"]}')""", "damaged"),
        ("""print('{"frames": 2, "width": 8, "height": 8, "fps": 1.0, "bytes": 9}\\n{}\\nshort')""", "damaged"),
        ("resource.setrlimit(resource.RLIMIT_CPU, (1, 2))\nwhile True: pass", "seconds of processor time"),
    ],
)
def test_a_process_that_breaks_or_talks_nonsense_costs_one_request(monkeypatch, tmp_path, code, words):
    worker(monkeypatch, tmp_path, code)
    assert words in refused(b"\0\0\0\x20ftypisom" + bytes(10**6))[1]


OPENED = """print('{"frames": 2, "width": 8, "height": 8, "fps": 1.0, "bytes": 9}\\n{}', flush=True)\n"""


@pytest.mark.parametrize("said", ["", OPENED])
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_process_that_is_ended_from_outside_does_not_blame_its_file(monkeypatch, tmp_path, said, name):
    ended = f"signal.signal(signal.{name}, signal.SIG_DFL)\n" if name != "SIGKILL" else ""
    worker(monkeypatch, tmp_path, f"{said}{ended}os.kill(os.getpid(), signal.{name})")
    with pytest.raises(EngineOverloaded, match="try again shortly"):
        decoded(b"\0\0\0\x20ftypisom" + bytes(100))


def test_a_process_that_cannot_be_started_is_worth_another_try(monkeypatch):
    def none_left(*args, **kwargs):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(subprocess, "Popen", none_left)
    with pytest.raises(EngineOverloaded, match="no room for a process"):
        decoded(b"\0\0\0\x20ftypisom" + bytes(100))


def test_signals_that_end_a_server_in_good_order_do_not_end_a_clip():
    process = VideoProcess()
    try:
        process.open(encoded([numbered(i) for i in range(9)]), fps=None, **LIMITS)
        for number in (signal.SIGINT, signal.SIGTERM):
            process._process.send_signal(number)
        assert [number_of(frame) for frame in process.frames()] == list(range(9))
    finally:
        process.close()


def test_a_killed_process_leaves_nothing_behind():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        process = VideoProcess()
        process.open(encoded([numbered(i) for i in range(9)]), fps=None, **LIMITS)
        process.close()
        process.close()
        del process
        gc.collect()
    never_started = VideoProcess()
    never_started.close()


def test_without_pyav_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(video_file, "find_spec", lambda name: None)
    video_file._library.cache_clear()
    code, message = refused(encoded([numbered(0)]))
    assert code == "no_video_decoder"
    assert "pip install 'covervlm[video]'" in message
    assert "data:video/jpeg;base64,FRAME,FRAME" in message


def test_the_server_does_not_import_pyav_itself():
    code = "import covervlm.server.wiring, sys; print('av' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
