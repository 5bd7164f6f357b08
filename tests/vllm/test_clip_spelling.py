"""Qwen3-VL's clips are spelled and cut as transformers' own processor does it, whose video half needs torchvision."""

import numpy as np
import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata

from covervlm.server.core.generation import Message, VideoPart
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from tests.server.models.plain_generate import generate
from tests.server.models.test_as_transformers import encode, greedy
from tests.server.models.test_pictures import picture
from tests.server.models.tiny_qwen import TEMPLATE
from tests.server.models.tiny_qwen3 import image_processor, save_tiny_qwen3

QUESTION = "What happens?"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3")
    save_tiny_qwen3(folder)
    adapter = load_adapter(Checkpoint(folder))
    video = Qwen3VLVideoProcessor(size={"shortest_edge": 2048, "longest_edge": 2**24}, cap_pixels_per_frame=False)
    processor = Qwen3VLProcessor(image_processor(), adapter.tokenizer, video, chat_template=TEMPLATE)
    return adapter, processor, Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize(("count", "fps"), [(4, 2.0), (5, 2.0), (7, 24.0), (3, 0.3), (2, 1.0)])
def test_a_clip_of_whole_cells_is_what_the_processor_makes_of_it(loaded, count, fps):
    """Frames that need no resizing: there torchvision and Pillow differ."""
    adapter, processor, plain = loaded
    frames = [picture(96 + 32 * i, 64).resize((96, 64)) for i in range(count)]
    inputs = processor(
        text=[
            f"<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
        ],
        videos=[np.stack([np.asarray(frame) for frame in frames])],
        video_metadata=[VideoMetadata(count, fps=fps, frames_indices=list(range(count)))],
        do_sample_frames=False,
        return_tensors="pt",
    )
    seen = adapter.preprocess_video(frames, fps)
    torch.testing.assert_close(seen["pixel_values"], inputs["pixel_values_videos"], atol=1e-5, rtol=1e-5)
    assert seen["grid"].tolist() == inputs["video_grid_thw"][0].tolist()
    ids = adapter.tokenize((Message("user", (VideoPart(tuple(frames), "", fps), QUESTION)),))
    images = encode(adapter, [frames])
    assert adapter.expanded(ids, images[0].layout.counts()) == inputs["input_ids"][0].tolist()
    tokens, _ = greedy(adapter, adapter.assemble(ids, images), 8)
    assert tokens == generate(plain, inputs, 8)[0]
