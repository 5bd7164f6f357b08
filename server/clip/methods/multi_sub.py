"""Multi-Sub: words inside the span of the reference words, and a visual projection fitted to them in turns."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.clip.methods.contracts import Group, Pictures, Placed, Progress


@dataclass(frozen=True)
class MultiSub(Group):
    """Learns each image's word as a mixture of the reference words, and in turns the visual projection.

    An image's word is softmax(w Gᵀ) G over the references G, with rows of unit length where they are compared. In turns
    (I) words and projection are aligned by cosine, and (II) with the words held, the projection is refined by a
    clustering loss on [word, image embedding]: `balance` weighs the mean distance within pseudo-clusters against the
    hinge on 1 - distance between them; an image's pseudo-label is its nearest reference word.
    `projection_learning_rate` is relative to the root mean square of the projection. The points are [word, image
    embedding] (n, m + d), both of unit length, the word by its coordinates. Multi-Sub (arXiv 2411.03978), section 3.
    """

    batch_size: ClassVar[int] = 128

    rounds: Annotated[int, Ge(1), Le(100)] = 4
    align_epochs: Annotated[int, Ge(1), Le(1000)] = 10
    cluster_epochs: Annotated[int, Ge(0), Le(1000)] = 5
    balance: Annotated[float, Ge(0), Le(1)] = 0.5
    word_learning_rate: Annotated[float, Gt(0), Le(10)] = 0.05
    projection_learning_rate: Annotated[float, Gt(0), Le(10)] = 0.03

    def place(self, pictures: Pictures, *, seed: int, progress: Progress) -> Placed:
        hidden, prompt, references = pictures.hidden, pictures.prompt, pictures.references
        generator = torch.Generator().manual_seed(seed)
        directions = normalize(references, dim=1)
        matrix = pictures.projection.clone().requires_grad_(True)
        # Coordinates w Gᵀ are what the word enters by, so they are learned directly, from the nearest word's.
        coordinates = (directions[pictures.nearest_words()] @ directions.T * 4).requires_grad_(True)
        # Adam's steps do not know the size of what they change; checkpoints differ in it by orders of magnitude.
        step = self.projection_learning_rate * float(matrix.detach().square().mean().sqrt())
        words = {"params": [coordinates], "lr": self.word_learning_rate}
        align = torch.optim.Adam([words, {"params": [matrix], "lr": step}])
        refine = torch.optim.Adam([matrix], lr=step)
        epochs = self.align_epochs + self.cluster_epochs
        for number in range(self.rounds * epochs):
            aligning = number % epochs < self.align_epochs
            optimizer = align if aligning else refine
            total = 0.0
            for rows in torch.randperm(len(hidden), generator=generator).split(self.batch_size):
                seen = normalize(hidden[rows] @ matrix.T, dim=1)
                if aligning:
                    word = torch.softmax(coordinates[rows], dim=1) @ references
                    loss = (1 - (seen * prompt.encode(word)).sum(dim=1)).mean()
                else:
                    word = normalize(torch.softmax(coordinates.detach()[rows], dim=1), dim=1)
                    loss = _clustering_loss(torch.cat([word, seen], dim=1), word.argmax(dim=1), self.balance)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(rows)
            progress((number + 1) / (self.rounds * epochs), loss=round(total / len(hidden), 6))
        with torch.no_grad():
            word = normalize(torch.softmax(coordinates, dim=1), dim=1)
            seen = normalize(hidden @ matrix.T, dim=1)
            return Placed(torch.cat([word, seen], dim=1), word.argmax(dim=1))


def _clustering_loss(points: Tensor, labels: Tensor, balance: float) -> Tensor:
    """Mean distance inside clusters against the mean shortfall of distances between them below 1."""
    distances = (points[:, None] - points[None]).square().sum(dim=2).add(1e-8).sqrt()
    same = labels[:, None] == labels[None]
    inside = distances[same].mean()
    between = (1 - distances[~same]).clamp_min(0)
    return balance * inside + (1 - balance) * (between.mean() if len(between) else inside.new_zeros(()))
