"""Passes over shuffled examples, with progress after each, and the steps of an optimizer on the way."""

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


def batches(n: int, batch_size: int, epochs: int) -> int:
    """How many batches there are in so many passes over n examples."""
    return epochs * -(-n // batch_size)


class Descent:
    """An optimizer whose learning rate falls along half a cosine, from its own to `least` after so many steps."""

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int, *, least: float = 0.0) -> None:
        self._optimizer = optimizer
        self._decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=least)

    def step(self, loss: Tensor) -> None:
        """Down the gradient of a scalar."""
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._decay.step()
