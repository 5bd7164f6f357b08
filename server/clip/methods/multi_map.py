"""Multi-MaP: one learned word per image, so that images group by the aspect that a user names."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from covervlm.server.clip.methods.contracts import Group, Pictures, Placed, Progress


@dataclass(frozen=True)
class MultiMaP(Group):
    """Learns the word that makes each image's prompt most like the image, near concept and reference word.

    The points are the learned prompts' embeddings (n, d), of unit length. Multi-MaP (arXiv 2404.15655), section 3.
    """

    batch_size: ClassVar[int] = 128
    """Images are independent of each other, so this affects only memory."""

    concept_weight: Annotated[float, Ge(0), Le(1e6)] = 0.2
    reference_weight: Annotated[float, Ge(0), Le(1e6)] = 0.2
    learning_rate: Annotated[float, Gt(0), Le(10)] = 0.005
    epochs: Annotated[int, Ge(1), Le(1000)] = 20

    def place(self, pictures: Pictures, *, seed: int, progress: Progress) -> Placed:
        prompt, references = pictures.prompt, pictures.references
        start = pictures.nearest_words()
        points: list[Tensor] = []
        batches = list(zip(pictures.images.split(self.batch_size), start.split(self.batch_size), strict=True))
        for done, (batch, chosen) in enumerate(batches):
            anchor = references[chosen]
            word = anchor.clone().requires_grad_(True)
            optimizer = torch.optim.Adagrad([word], lr=self.learning_rate)
            for epoch in range(self.epochs):
                apart = 1 - (batch * prompt.encode(word)).sum(dim=1)
                from_concept = (word - pictures.concept).square().mean(dim=1)
                from_reference = (word - anchor).square().mean(dim=1)
                loss = (apart + self.concept_weight * from_concept + self.reference_weight * from_reference).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                share = (done + (epoch + 1) / self.epochs) / len(batches)
                progress(share, loss=round(float(loss.detach()) / len(batch), 6))
            with torch.no_grad():
                points.append(prompt.encode(word))
        learned = torch.cat(points)
        return Placed(learned, pictures.nearest_words(learned))
