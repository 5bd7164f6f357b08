"""A clip is asked about in this process as a picture is: as a file, and as a list of the same frames."""

import numpy as np
import pytest

import covervlm
from covervlm.clients import Video
from tests.server.media.video_files import LOSSLESS, encoded, noise
from tests.server.models.tiny_qwen3 import save_tiny_qwen3

FRAMES = [noise(seed) for seed in range(4)]
RATE = 25


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3_vl")
    save_tiny_qwen3(folder)
    with covervlm.load(str(folder), threads=1) as model:
        yield model


def test_a_file_and_a_list_of_its_frames_get_one_answer(model, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(encoded(FRAMES, rate=RATE, **LOSSLESS))
    listed = Video([FRAMES[0], np.asarray(FRAMES[1]), *FRAMES[2:]], fps=RATE)
    asked = [Video(tmp_path / "clip.mp4"), Video((tmp_path / "clip.mp4").read_bytes()), listed]
    answers = model.ask_batch([(clip, "What happens?") for clip in asked], keep_tokens=4, max_tokens=4)
    assert len({answer.text for answer in answers}) == 1
    assert [answer.images[0].kept for answer in answers] == [4, 4, 4]


def test_what_is_kept_of_a_clip_is_counted_over_all_moments(model):
    kept = model.select(Video(FRAMES), "What happens?", keep_tokens=4)
    assert len(kept.indices) == 4
    assert kept.grid is None
