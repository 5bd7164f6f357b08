"""What a job learns from: images, which it embeds itself, and embeddings that came ready."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from covervlm.server.clip.encoder.batched import BatchedEncoder, image_bytes
from covervlm.server.clip.encoder.random_views import random_view
from covervlm.server.clip.tensors import check_embeddings, check_views, read_embeddings
from covervlm.server.clip.uploads import Uploads
from covervlm.server.jobs.runner import Reporter


@dataclass(frozen=True, eq=False)
class Sources:
    """Images first, then embeddings, (n, d) each, or (n, 2, d) of two views of each image."""

    images: Sequence[Image.Image]
    parts: Sequence[Tensor]

    def __len__(self) -> int:
        return len(self.images) + sum(map(len, self.parts))

    @property
    def nbytes(self) -> int:
        return image_bytes(self.images) + sum(part.nbytes for part in self.parts)

    @property
    def embedded(self) -> float:
        """The share of a job's progress that `features` reports."""
        return 0.5 if self.images else 0.0

    def features(self, batched: BatchedEncoder, report: Reporter) -> Tensor:
        """(n, d) unit rows. In a job's thread."""
        parts = list(self.parts)
        if self.images:
            parts.insert(0, batched.in_batches(batched.encoder.embed_pixels, self.images, report))
        return torch.cat(parts)

    def views(self, batched: BatchedEncoder, report: Reporter, *, seed: int) -> Tensor:
        """(n, 3, d) unit rows of each image and two random views of it. Of embeddings, the first view is the image."""
        parts = [torch.cat([part[:, :1], part], dim=1) for part in self.parts]
        if self.images:
            rows = batched.in_batches(batched.encoder.embed_pixels, _WithViews(self.images, seed), report)
            parts.insert(0, rows.unflatten(0, (-1, 3)))
        return torch.cat(parts)


class _WithViews(Sequence[Image.Image]):
    """Each image, followed by two views of it that are made when they are asked for."""

    def __init__(self, images: Sequence[Image.Image], seed: int) -> None:
        self._images = images
        self._seed = seed

    def __len__(self) -> int:
        return 3 * len(self._images)

    def __getitem__(self, place: int | slice) -> "Image.Image | list[Image.Image]":  # type: ignore[override]
        if isinstance(place, slice):
            return [self._at(number) for number in range(*place.indices(len(self)))]
        return self._at(place)

    def _at(self, number: int) -> Image.Image:
        image = self._images[number // 3]
        return random_view(image, random.Random(f"{self._seed} {number}")) if number % 3 else image


async def gathered(
    owner: str,
    kept: Uploads,
    *,
    images: Sequence[Image.Image] = (),
    rows: np.ndarray | None = None,
    uploads: Sequence[str] = (),
    embeddings: bytes | None = None,
    views: int = 1,
) -> Sources:
    """In the order images, rows (n, d), uploads, embeddings. Raises NotFound, and BadTensors for other views."""
    parts = []
    if rows is not None:
        parts.append(check_embeddings(torch.from_numpy(rows), kept.dimensions))
    parts += [kept.get(owner, upload) for upload in uploads]
    if embeddings is not None:
        parts.append(await asyncio.to_thread(read_embeddings, embeddings, kept.dimensions))
    for part in parts:
        await asyncio.to_thread(check_views, part, views)
    return Sources(list(images), parts)
