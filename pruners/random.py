"""Random tokens: the floor that every other method has to beat."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from covervlm.pruners.base import Objective, PruneInput, Pruner, highest


@dataclass(frozen=True)
class Random(Pruner):
    """Tokens drawn without replacement; `PruneInput.seed` fixes the draw, on any device."""

    def pick(self, inputs: Sequence[PruneInput], counts: Sequence[int], objective: Objective) -> list[Tensor]:
        picks = []
        for image, count in zip(inputs, counts, strict=True):
            generator = torch.Generator().manual_seed(image.seed % 2**63)
            scores = torch.rand(len(image.tokens), generator=generator)
            picks.append(highest(scores.to(image.tokens.device), count, image.allowed))
        return picks
