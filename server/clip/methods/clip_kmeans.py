"""k-means on the image embeddings themselves: the groups that CLIP sees without being told an aspect."""

from dataclasses import dataclass
from typing import ClassVar

from covervlm.server.clip.methods.contracts import Group, Pictures, Placed, Progress


@dataclass(frozen=True)
class ClipKMeans(Group):
    """Groups by the images' own embeddings; words only name the groups."""

    seeded_by_words: ClassVar[bool] = False

    def place(self, pictures: Pictures, *, seed: int, progress: Progress) -> Placed:
        return Placed(pictures.images, pictures.nearest_words())
