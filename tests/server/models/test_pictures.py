"""Pictures are preprocessed to transformers' own bits, at a cost that is told beforehand and that no shape blows up."""

import gc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.models.pictures import crop_cost, crop_pixels, mosaic_cost, mosaic_pixels, tile_cost, tile_pixels
from covervlm.server.models.qwen2_5_vl import Qwen2_5_VL, _most_pixels, _patches, _resized

MIB = 2**20
SIZES = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}


def qwen_cost(width, height, processor):
    return Qwen2_5_VL(SimpleNamespace()).cost(width, height, processor)


def qwen_pixels(image, processor):
    return _patches(image, processor, _resized(*image.size, processor, _most_pixels(processor, clip=False)))[
        "pixel_values"
    ]


CROP, TILES, QWEN = (crop_cost, crop_pixels), (tile_cost, tile_pixels), (qwen_cost, qwen_pixels)
MOSAIC = (mosaic_cost, mosaic_pixels)
PROCESSORS = {
    "CLIP": (CLIPImageProcessorPil(**SIZES), CROP),
    "CLIP at 224": (CLIPImageProcessorPil(), CROP),
    "a crop larger than the picture": (CLIPImageProcessorPil(**SIZES | {"size": {"shortest_edge": 100}}), CROP),
    "a longest edge": (CLIPImageProcessorPil(**SIZES | {"size": {"shortest_edge": 336, "longest_edge": 500}}), CROP),
    "bilinear": (CLIPImageProcessorPil(resample=2, **SIZES), CROP),
    "SigLIP": (SiglipImageProcessorPil(size={"height": 384, "width": 384}), CROP),
    "LLaVA": (LlavaImageProcessorPil(**SIZES), CROP),
    "LLaVA that pads": (LlavaImageProcessorPil(do_pad=True, **SIZES), CROP),
    "LLaVA-NeXT": (LlavaNextImageProcessorPil(**SIZES), TILES),
    "LLaVA-OneVision": (LlavaOnevisionImageProcessorPil(), TILES),
    "InternVL": (GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, crop_to_patches=True), MOSAIC),
    "Qwen3-VL": (Qwen2VLImageProcessorPil(patch_size=16, min_pixels=65_536, max_pixels=2**20), QWEN),
    "Qwen2.5-VL": (Qwen2VLImageProcessorPil(), QWEN),
    "Qwen2.5-VL of many pixels": (Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=12_845_056), QWEN),
}
QWENS = [name for name in PROCESSORS if "Qwen" in name]
THIN = [(1, 1), (1, 2), (7, 1), (30, 1), (1, 200), (1, 4000), (4000, 1), (1, 20_000), (20_000, 1), (3, 1_000_000)]
WHOLE = [(336, 336), (640, 480), (480, 640), (335, 337), (1000, 50), (50, 1000), (900, 1300)]
LARGE = [(7000, 7000), (8000, 6000), (16_000, 3000), (3000, 16_000), (250, 30_000)]
REFUSED = {
    "CLIP": THIN[4:],
    "a longest edge": THIN[5:],
    "SigLIP": THIN[9:],
    "LLaVA that pads": [*THIN[7:], (250, 30_000)],
    **dict.fromkeys(["LLaVA-NeXT", "LLaVA-OneVision", "InternVL"], THIN[9:]),
    **dict.fromkeys(QWENS, THIN[5:]),
}


def picture(width, height):
    rng = np.random.default_rng(width)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def flat(image, processor):
    inputs = processor(image, return_tensors="pt").pixel_values
    return inputs if isinstance(processor, (Qwen2VLImageProcessorPil, GotOcr2ImageProcessorPil)) else inputs[0]


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [*THIN[:5], *WHOLE])
def test_pixels_are_the_processors_own_to_the_bit(name, size):
    processor, (_, pixels) = PROCESSORS[name]
    image = picture(*size)
    assert torch.equal(pixels(image, processor), flat(image, processor))


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", WHOLE)
def test_the_cost_names_as_many_numbers_as_there_will_be(name, size):
    processor, (cost, pixels) = PROCESSORS[name]
    assert cost(*size, processor).numbers == pixels(picture(*size), processor).numel()


def resident(field):
    return int(Path("/proc/self/status").read_text().split(field)[1].split()[0]) * 1024


def peak(make):
    """Bytes of this process at most while `make` runs, beyond those before it: allocations of every library."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS:")
    result = make()
    return resident("VmHWM:") - before, result


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("size", [*THIN, *LARGE])
def test_a_picture_costs_what_was_told_and_no_shape_more_than_300_mib(name, size):
    """Beside the weights: the pixels and all that preprocessing makes of them, or a refusal before anything is made."""
    processor, (cost, pixels) = PROCESSORS[name]
    if size in REFUSED[name]:
        with pytest.raises(InvalidRequest, match=r"too narrow|aspect ratio"):
            cost(*size, processor)
        return
    told = cost(*size, processor)
    image = Image.effect_noise((1000, 1000), 60).convert("RGB").resize(size, Image.Resampling.NEAREST)
    pixels(Image.new("RGB", (9, 9)), processor)
    used, result = peak(lambda: pixels(image, processor))
    assert used <= told.work + told.kept + 24 * MIB, (used / MIB, told)
    many = "many pixels" in name  # whose result alone takes 294 MiB
    assert many or used + 4 * size[0] * size[1] < 300 * MIB, used / MIB
    assert result.numel() == told.numbers
