"""Other views of a picture: random crops, and changes that destroy its colours or its shapes."""

import numpy as np
from PIL import Image, ImageEnhance


def crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random part of two fifths to all of the area, perhaps mirrored, in slightly other light."""
    side = round(image.width * float(np.sqrt(rng.uniform(0.4, 1))))
    left, top = (int(v) for v in rng.integers(0, image.width - side + 1, 2))
    part = image.crop((left, top, left + side, top + side)).resize(image.size, Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return ImageEnhance.Brightness(part).enhance(rng.uniform(0.7, 1.3))


def recoloured(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Every hue turned alike, by any angle, with half to three halves of the contrast."""
    hue, saturation, value = image.convert("HSV").split()
    by = int(rng.integers(256))
    turned = hue.point([(h + by) % 256 for h in range(256)])
    shown = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
    return ImageEnhance.Contrast(shown).enhance(rng.uniform(0.5, 1.5))


def shuffled(image: Image.Image, rng: np.random.Generator, *, tiles: int = 6) -> Image.Image:
    """Its tiles in another order: colours without shapes."""
    side = image.width // tiles
    places = [(side * (i % tiles), side * (i // tiles)) for i in range(tiles * tiles)]
    mixed = Image.new("RGB", (side * tiles, side * tiles))
    for (left, top), to in zip((places[i] for i in rng.permutation(len(places))), places, strict=True):
        mixed.paste(image.crop((left, top, left + side, top + side)), to)
    return mixed.resize(image.size)
