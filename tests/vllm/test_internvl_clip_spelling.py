"""InternVL3's clips are spelled and cut as transformers' own processor does it, whose video half needs torchvision."""

import numpy as np
import pytest
import torch
from transformers import InternVLForConditionalGeneration, InternVLProcessor, InternVLVideoProcessor

from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from tests.server.models.plain_generate import generate
from tests.server.models.test_as_transformers import encode, greedy
from tests.server.models.test_pictures import picture
from tests.server.models.tiny_internvl import PIXELS, TEMPLATE, image_processor, save_tiny_internvl
from tests.server.models.tiny_qwen import chat


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("internvl")
    save_tiny_internvl(folder)
    adapter = load_adapter(Checkpoint(folder))
    video = InternVLVideoProcessor(size={"height": PIXELS, "width": PIXELS})
    tools = image_processor(), adapter.tokenizer, video
    processor = InternVLProcessor(*tools, image_seq_length=4, chat_template=TEMPLATE)
    return adapter, processor, InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("count", [1, 5])
def test_a_clip_of_whole_tiles_beside_an_image_is_what_the_processor_makes_of_it(loaded, count):
    """Frames that need no resizing: there torchvision and Pillow differ."""
    adapter, processor, plain = loaded
    frames, still = [picture(96 + 32 * i, 64).resize((PIXELS, PIXELS)) for i in range(count)], picture(100, 60)
    inputs = processor(
        text=["<|im_start|>user\nLook:<video>\nand<IMG_CONTEXT>\nWhat?<|im_end|>\n<|im_start|>assistant\n"],
        images=[still],
        videos=[np.stack([np.asarray(frame) for frame in frames])],
        return_tensors="pt",
    )
    seen = torch.cat([adapter.preprocess_video(frames, 2.0)["pixel_values"], adapter.preprocess(still)["pixel_values"]])
    torch.testing.assert_close(seen, inputs["pixel_values"], atol=1e-5, rtol=1e-5)
    ids = adapter.tokenize(chat("Look:", frames, "and", still, "What?"))
    images = encode(adapter, [frames, still])
    counts = [count for image in images for count in image.layout.counts()]
    assert adapter.expanded(ids, counts) == inputs["input_ids"][0].tolist()
    read = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    tokens, _ = greedy(adapter, adapter.assemble(ids, images), 8)
    assert tokens == generate(plain, read, 8)[0]
