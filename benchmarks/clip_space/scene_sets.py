"""Single-object scenes with two aspects, shape and colour, clean and in five ways that are harder than training."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from demo_model.scenes import COLOR_NAMES, SHAPES, Scene, make_scene
from demo_model.splits import FIRST_SEED
from PIL import Image, ImageFilter

Degrade = Callable[[Scene, np.random.Generator], Image.Image]


@dataclass(frozen=True)
class SceneSet:
    """What a set is, and how a scene becomes its picture. With `tail`, shape i occurs in proportion to 1 / (i + 1)."""

    about: str
    degrade: Degrade
    tail: bool = False


def _plain(scene: Scene, _: np.random.Generator) -> Image.Image:
    return scene.image


def _small(scene: Scene, _: np.random.Generator) -> Image.Image:
    """At 28 % of the side, on a grey ground."""
    ground = Image.new("RGB", scene.image.size, (128, 128, 128))
    side = round(0.28 * scene.image.width)
    ground.paste(scene.image.resize((side, side), Image.Resampling.BICUBIC), (120, 120))
    return ground


def _noisy(scene: Scene, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(scene.image, np.float32) + rng.normal(0, 45, (*scene.image.size, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _blurred(scene: Scene, _: np.random.Generator) -> Image.Image:
    return scene.image.filter(ImageFilter.GaussianBlur(6))


def _occluded(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """A grey bar through the object, as wide as two fifths of it."""
    thing, image = scene.objects[0], scene.image.copy()
    width = 0.4 * thing.size
    offset = rng.uniform(-0.2, 0.2) * thing.size
    left, top = round(thing.cx + offset - width / 2), round(thing.cy - thing.size)
    image.paste((128, 128, 128), (left, top, round(left + width), round(thing.cy + thing.size)))
    return image


SETS = {
    "clean": SceneSet("as in training", _plain),
    "small": SceneSet("shrunk to 28 % of the side", _small),
    "noisy": SceneSet("Gaussian noise, standard deviation 45 of 255", _noisy),
    "blurred": SceneSet("Gaussian blur, radius 6 of 336 pixels", _blurred),
    "occluded": SceneSet("a bar over two fifths of the object", _occluded),
    "long tail": SceneSet("as in training, shapes in proportion to 1, 1/2, ... 1/8", _plain, tail=True),
}


def scene_set(name: str, n: int) -> tuple[list[Image.Image], list[int], list[int]]:
    """n pictures of a set with the indices of their shapes and colours, in random order."""
    chosen = SETS[name]
    first = FIRST_SEED["zero_shot"] + 100_000 * list(SETS).index(name)
    weights = 1 / np.arange(1, len(SHAPES) + 1) if chosen.tail else np.ones(len(SHAPES))
    left = np.floor(n * weights / weights.sum()).astype(int)
    left[0] += n - left.sum()
    images, shapes, colors, seed = [], [], [], first
    while left.sum():
        scene, rng = make_scene(seed, n_objects=1), np.random.default_rng(seed)
        seed += 1
        shape = SHAPES.index(scene.objects[0].shape)
        if left[shape]:
            left[shape] -= 1
            images.append(chosen.degrade(scene, rng))
            shapes.append(shape)
            colors.append(COLOR_NAMES.index(scene.objects[0].color))
    order = np.random.default_rng(first).permutation(n)
    return [images[i] for i in order], [shapes[i] for i in order], [colors[i] for i in order]
