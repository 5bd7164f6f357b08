"""Passes over shuffled examples, with progress after each."""

from collections.abc import Iterator

import torch
from torch import Tensor

from covervlm.server.clip.methods.contracts import Progress


def shuffled(features: Tensor, epochs: int, *, seed: int, progress: Progress) -> Iterator[Tensor]:
    """For each epoch the rows (n,) of features (n, d) in an order of its own; progress after each epoch."""
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(1, epochs + 1):
        yield torch.randperm(len(features), generator=generator).to(features.device)
        progress(epoch / epochs, epoch=epoch, epochs=epochs)
