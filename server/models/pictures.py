"""What image processors make of a picture: known from its size beforehand, and made without copies of all its pixels.

transformers' processors resize a copy of a copy of a picture, and pad before they resize or crop after it, so that a
thin picture of a few bytes becomes gigabytes. Here Pillow resizes the picture itself, as they would, to the same bits.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import ChannelDimension
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from covervlm.server.core.errors import InvalidRequest

MOST_PIXELS = 2**24
"""Of every step of preprocessing: reached by a picture 148 times as long as wide, of which 336 pixels are cropped."""
MOST_PADDED = 2**28
"""Pixels of the square that a picture is padded to; the square is never there as a whole."""
_TILING = (LlavaNextImageProcessorPil, LlavaOnevisionImageProcessorPil, GotOcr2ImageProcessorPil)
_STRIP = 2**20
_STEPS = ("do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


@dataclass(frozen=True)
class Cost:
    """What preprocessing one picture takes.

    pixels: of the largest picture that is made on the way. numbers: of the result. whole: pixels of the largest picture
    that transformers' own processor makes.
    """

    pixels: int
    numbers: int
    whole: int

    @property
    def work(self) -> int:
        """Bytes while it runs: Pillow's rows and columns, and the last steps in double precision, a strip at a time."""
        return 8 * self.pixels + 16 * min(self.numbers, 6 * _STRIP)

    @property
    def kept(self) -> int:
        """Bytes of the result."""
        return 4 * self.numbers

    @property
    def by_processor(self) -> int:
        """Bytes while transformers' own processor runs: copies of the picture, some in single precision."""
        return 16 * self.whole + 16 * self.numbers


def cost(width: int, height: int, pixels: int, numbers: int, *, whole: int = 0) -> Cost:
    """The checked cost; InvalidRequest for a picture of this size that would become more than MOST_PIXELS, or none."""
    if not 0 < pixels <= MOST_PIXELS or whole > MOST_PADDED:
        raise InvalidRequest(
            f"The image of {width} x {height} pixels is too narrow for this model, whose processor would make "
            f"{max(pixels, whole)} pixels of it; cut it into pieces or make its longer side shorter.",
            code="image_too_large",
        )
    return Cost(pixels, numbers, max(width * height, pixels, whole))


def crop_cost(width: int, height: int, processor: Any) -> Cost:
    """What `crop_pixels` takes. Raises InvalidRequest."""
    whole = 0
    rows = height
    if _pads(processor):
        rows = side = max(width, height)
        across, down = _resized(side, side, processor)
        whole = side * side
    else:
        across, down = _resized(width, height, processor)
    # Pillow resizes all rows first, then the columns.
    seen = processor.crop_size if processor.do_center_crop else None
    area = seen.height * seen.width if seen else across * down
    return cost(width, height, down and across * max(down, rows), 3 * area, whole=whole)


def crop_pixels(image: Image.Image, processor: Any) -> Tensor:
    """(3, H, W): what a processor that resizes and crops, and may pad before, makes of an RGB image."""
    if not _is_known(processor):
        pixels: Tensor = processor(image, return_tensors="pt").pixel_values[0]
        return pixels
    return _numbers([_cropped(image, processor)], 1, processor)[0]


def crop_box(width: int, height: int, processor: Any) -> tuple[float, float, float, float]:
    """(left, top, right, bottom): what of an image `crop_pixels` leaves, beyond the image where it is padded."""
    seen_width, seen_height = float(width), float(height)
    if getattr(processor, "do_pad", False):
        seen_width = seen_height = float(max(width, height))
    elif processor.do_center_crop and processor.size.shortest_edge:
        scale = min(width, height) / processor.size.shortest_edge
        seen_width, seen_height = processor.crop_size.width * scale, processor.crop_size.height * scale
    left, top = (width - seen_width) / 2, (height - seen_height) / 2
    return left, top, left + seen_width, top + seen_height


def tile_cost(width: int, height: int, processor: Any) -> Cost:
    """What `tile_pixels` takes. Raises InvalidRequest."""
    (tall, wide), (_, across), base, side = _tiling(width, height, processor)
    tiles = len(range(0, tall, side)) * len(range(0, wide, side))
    pixels = max(tall * wide, across * height, base[0] * max(base[1], height))
    return cost(width, height, pixels, 3 * (1 + tiles) * side * side)


def tile_pixels(image: Image.Image, processor: Any) -> Tensor:
    """(1 + tiles, 3, H, W): an RGB image as LLaVA-NeXT and LLaVA-OneVision see it, the view of the whole first."""
    if not isinstance(processor, _TILING):
        pixels: Tensor = processor(image, return_tensors="pt").pixel_values[0]
        return pixels
    (tall, wide), (down, across), base, side = _tiling(image.width, image.height, processor)
    canvas = Image.new("RGB", (wide, tall))
    canvas.paste(_resize(image, (across, down), processor), ((wide - across) // 2, (tall - down) // 2))
    boxes = [
        (left, top, min(left + side, wide), min(top + side, tall))
        for top in range(0, tall, side)
        for left in range(0, wide, side)
    ]
    views = chain([_resize(image, base, processor)], map(canvas.crop, boxes))
    return _numbers((_cropped(view, processor) for view in views), 1 + len(boxes), processor)


def mosaic(width: int, height: int, processor: Any) -> tuple[int, int]:
    """(rows, columns) of the tiles that InternVL's processor cuts out of an image of this size."""
    if processor.max_patches <= 1:
        return 1, 1
    tile = processor.size.height, processor.size.width
    columns, rows = get_optimal_tiled_canvas((height, width), tile, processor.min_patches, processor.max_patches)
    return rows, columns


def mosaic_cost(width: int, height: int, processor: Any) -> Cost:
    """Of `mosaic_pixels`. Raises InvalidRequest."""
    rows, columns = mosaic(width, height, processor)
    across, down = columns * processor.size.width, rows * processor.size.height
    tiles = rows * columns
    numbers = 3 * (tiles + (tiles > 1)) * processor.size.height * processor.size.width
    return cost(width, height, across * max(down, height), numbers)


def mosaic_pixels(image: Image.Image, processor: Any) -> Tensor:
    """(tiles and 1 if they are several, 3, H, W): an RGB image as InternVL sees it, the view of the whole last."""
    rows, columns = mosaic(image.width, image.height, processor)
    side = processor.size.width, processor.size.height
    canvas = _resize(image, (columns * side[0], rows * side[1]), processor)
    boxes = [
        (left, top, left + side[0], top + side[1])
        for top in range(0, canvas.height, side[1])
        for left in range(0, canvas.width, side[0])
    ]
    whole = [_resize(image, side, processor)] if len(boxes) > 1 else []
    return _numbers(chain(map(canvas.crop, boxes), whole), len(boxes) + len(whole), processor)


def check_frames(frames: Sequence[Image.Image]) -> None:
    """Raises InvalidRequest for a clip without frames, or with frames of several sizes."""
    if len({frame.size for frame in frames}) != 1:
        raise InvalidRequest("A video needs at least one frame, and all of its frames must have the same size.")


def frame_cost(width: int, height: int, processor: Any, frames: int) -> Cost:
    """Of `frame_pixels`. Raises InvalidRequest."""
    one = crop_cost(width, height, processor)
    return replace(one, numbers=frames * one.numbers)


def frame_pixels(frames: Sequence[Image.Image], processor: Any) -> Tensor:
    """(frames, 3, H, W): what a processor that cuts tiles would make of each RGB image if it cut none."""
    return _numbers((_cropped(frame, processor) for frame in frames), len(frames), processor)


def strips(width: int, height: int, rows: int) -> Iterator[tuple[int, int, int, int]]:
    """Boxes from top to bottom over a picture whose height is a multiple of `rows`, as the boxes' heights are."""
    step = max(1, _STRIP // (width * rows)) * rows
    for top in range(0, height, step):
        yield 0, top, width, min(top + step, height)


def _pads(processor: Any) -> bool:
    return bool(getattr(processor, "do_pad", False)) and type(processor).__name__.startswith("LlavaImageProcessor")


def _is_known(processor: Any) -> bool:
    """Whether the processor does just what is done here: it resizes by Pillow, and overrides no step."""
    cls = type(processor)
    steps = getattr(cls, "_preprocess", None)
    return (
        getattr(cls, "resize", None) is PilBackend.resize
        and (steps is PilBackend._preprocess or steps is LlavaImageProcessorPil._preprocess)
        and bool(processor.do_resize)
    )


def _resized(width: int, height: int, processor: Any) -> tuple[int, int]:
    """(width, height) after resizing, before the crop."""
    size = processor.size
    if not processor.do_resize:
        return width, height
    if size.shortest_edge and size.longest_edge:
        down, across = get_size_with_aspect_ratio((height, width), size.shortest_edge, size.longest_edge)
        return across, down
    if size.shortest_edge:
        short, long = sorted((width, height))
        longer = int(size.shortest_edge * long / short)
        return (size.shortest_edge, longer) if width <= height else (longer, size.shortest_edge)
    if not size.height or not size.width:
        raise ValueError(f"the image processor's size is {size}; it needs a shortest_edge, or height and width")
    return size.width, size.height


def _resize(image: Image.Image, size: tuple[int, int], processor: Any) -> Image.Image:
    resample = processor.resample
    return image.resize(size, Image.Resampling.BILINEAR if resample is None else Image.Resampling(int(resample)))


def _cropped(image: Image.Image, processor: Any) -> Image.Image:
    """Padded, resized, and without what the processor's own crop would leave out."""
    if _pads(processor):
        image = _resized_square(image, processor)
    else:
        image = _resize(image, _resized(image.width, image.height, processor), processor)
    if not processor.do_center_crop:
        return image
    across, down = min(image.width, processor.crop_size.width), min(image.height, processor.crop_size.height)
    left, top = (image.width - across) // 2, (image.height - down) // 2
    return image.crop((left, top, left + across, top + down))


def _resized_square(image: Image.Image, processor: Any) -> Image.Image:
    """The image, padded to a square and resized, with no more than a strip of the square in memory.

    Pillow resizes rows first, each on its own, then columns; so a strip of rows may go first, and rows of nothing but
    padding are what they are after as well.
    """
    side = max(image.size)
    size = _resized(side, side, processor)
    color = tuple(int(mean * 255) for mean in processor.image_mean) if processor.image_mean else (0, 0, 0)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    rows = Image.new("RGB", (size[0], side), color)
    for _, start, _, end in strips(side, image.height, 1):
        strip = Image.new("RGB", (side, end - start), color)
        strip.paste(image.crop((0, start, image.width, end)), (left, 0))
        rows.paste(_resize(strip, (size[0], strip.height), processor), (0, top + start))
    return _resize(rows, size, processor)


def _tiling(width: int, height: int, processor: Any) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
    """(height, width) of the canvas and of the picture on it, (width, height) of the whole's view, a tile's side."""
    size, crop = processor.size, processor.crop_size
    canvas = select_best_resolution((height, width), processor.image_grid_pinpoints)
    shape = np.broadcast_to(np.uint8(0), (3, height, width))  # only its shape is read
    picture = get_patch_output_size(shape, canvas, input_data_format=ChannelDimension.FIRST)
    base = (size.width, size.height) if size.height and size.width else (size.shortest_edge, size.shortest_edge)
    return canvas, picture, base, crop.height if crop else base[1]


def _numbers(images: Iterable[Image.Image], count: int, processor: Any) -> Tensor:
    """(count, 3, H, W): the processor's last steps, after resizing; one image after the other, as each is made."""
    if isinstance(processor, _TILING):
        # Which would look for tiles again.
        steps = {name: step for name in _STEPS if (step := getattr(processor, name)) is not None}
        processor = CLIPImageProcessorPil(**{"do_center_crop": False} | steps)
    pixels = torch.empty(0)
    for number, image in enumerate(images):
        [own] = processor([image], do_resize=False, do_pad=False, return_tensors="pt").pixel_values
        if not number:
            pixels = torch.empty(count, *own.shape)
        pixels[number] = own
    return pixels
