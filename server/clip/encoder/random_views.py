"""Random views of a picture that show the same thing: what two views have in common is what the picture is of."""

import math
import random

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

_TRIES = 10


def random_view(image: Image.Image, draw: random.Random) -> Image.Image:
    """A square cut out of an RGB image, perhaps mirrored, with other colours, grey or blurred.

    It covers 20 % to 100 % of the image, as in MoCo-v2 (arXiv 2003.04297), whose augmentations these are.
    """
    left, top, width, height = _cut(image.width, image.height, draw)
    side = min(width, height)
    view = image.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    if draw.random() < 0.8:
        view = _other_colors(view, draw)
    if draw.random() < 0.2:
        view = ImageOps.grayscale(view).convert("RGB")
    if draw.random() < 0.5:
        view = view.filter(ImageFilter.GaussianBlur(draw.uniform(0.1, 2.0) * side / 224))
    return ImageOps.mirror(view) if draw.random() < 0.5 else view


def _cut(width: int, height: int, draw: random.Random) -> tuple[int, int, int, int]:
    """(left, top, width, height) in whole pixels; the largest middle square where no cut of the drawn shapes fits."""
    for _ in range(_TRIES):
        area = width * height * draw.uniform(0.2, 1)
        ratio = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            return draw.randint(0, width - across), draw.randint(0, height - down), across, down
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def _other_colors(view: Image.Image, draw: random.Random) -> Image.Image:
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        view = enhance(view).enhance(draw.uniform(0.6, 1.4))
    hue, saturation, value = view.convert("HSV").split()
    turn = round(255 * draw.uniform(-0.1, 0.1))
    return Image.merge("HSV", (hue.point(lambda h: (h + turn) % 256), saturation, value)).convert("RGB")
