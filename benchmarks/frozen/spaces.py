"""Where methods are compared: noisy scenes seen by the demo CLIP, and scikit-learn's digits by their pixels.

Features of pictures are kept in results/features/, since computing them takes most of the time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from clip_space.class_proxies import class_proxies
from clip_space.scene_sets import scene_set
from clip_space.views import crop
from demo_model.scenes import COLOR_NAMES, SHAPES
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.clip.encoder.encoder import ClipEncoder
from covervlm.server.clip.methods.contracts import Examples
from covervlm.server.demo import clip_path

SCENES, CROPPED = 800, 300
PAIRS = [f"{color} {shape}" for shape in SHAPES for color in COLOR_NAMES]
KEPT = Path(__file__).parents[2] / "results" / "features"


@dataclass(frozen=True, eq=False)
class Space:
    """Features (n, d) with rows of unit length, labels (n,), and the classes' text (d, K) where there is any."""

    x: Tensor
    y: Tensor
    text: Tensor | None = None

    def examples(self, rows: Tensor, labels: Tensor | None = None, **more: Tensor) -> Examples:
        return Examples(self.x[rows], self.text, self.y[rows] if labels is None else labels, **more)

    def draw(self, seed: int, counts: Callable[[int], int]) -> tuple[Tensor, Tensor]:
        """Rows to learn from, `counts(label)` of each class, and all the others."""
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(seed))
        chosen = [order[self.y[order] == label][: counts(label)] for label in range(int(self.y.max()) + 1)]
        known = torch.cat(chosen)
        return known, order[~torch.isin(order, known)]


@cache
def encoder() -> ClipEncoder:
    return ClipEncoder(str(clip_path()), device="cpu")


def hidden(name: str, images: Callable[[], list[Image]]) -> Tensor:
    """(n, d_v) features before the projection, those of an earlier run under this name where there are any."""
    file = KEPT / f"{name.replace(' ', '_')}.npy"
    if not file.exists():
        pixels = (encoder().preprocess(image) for image in images())
        rows = torch.cat([encoder().hidden_pixels([one]) for one in pixels])
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, rows.numpy())
    return torch.from_numpy(np.load(file))


def embedded(rows: Tensor) -> Tensor:
    """Unit rows in the space of texts."""
    return normalize(rows @ encoder().visual_projection().T, dim=-1)


@cache
def scenes() -> Space:
    """Single objects of the zero-shot seeds among noise, 64 classes of shape and colour."""
    images, shapes, colors = scene_set("noisy", SCENES)
    y = torch.tensor(shapes) * len(COLOR_NAMES) + torch.tensor(colors)
    x = embedded(hidden(f"noisy_{SCENES}", lambda: images))
    return Space(x, y, class_proxies(encoder().embed_texts, PAIRS, ("a photo of a {}",)))


@cache
def crops() -> tuple[Tensor, Tensor]:
    """Two crops of each of the first scenes."""

    def made() -> list[Image]:
        images, *_ = scene_set("noisy", SCENES)
        rng = np.random.default_rng(0)
        return [crop(image, rng) for image in images[:CROPPED] for _ in range(2)]

    first, second = embedded(hidden(f"crops_{CROPPED}", made)).unflatten(0, (-1, 2)).unbind(dim=1)
    return first, second


@cache
def digits() -> Space:
    from sklearn.datasets import load_digits  # needed here alone

    pixels, labels = load_digits(return_X_y=True)
    return Space(normalize(torch.from_numpy(pixels).float(), dim=1), torch.from_numpy(labels).long())
