"""CoIns: a space for search finer than its labels, from coarse classes and two views of each image."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from covervlm.server.clip.methods.contracts import Examples, Fit, Progress, Projection
from covervlm.server.clip.methods.epochs import Descent, batches, shuffled
from covervlm.server.clip.methods.sea import class_means
from covervlm.server.clip.methods.soft_triple import principal_directions


@dataclass(frozen=True)
class CoIns(Fit[Projection]):
    """A linear map for search that tells images apart within coarse classes (arXiv 2005.09681).

    It needs two real views of each image, such as two crops: with one, images would only be pushed apart.
    `coarse_weight` weighs the coarse classes, `queue` is how many earlier images each is contrasted with.
    """

    needs: ClassVar[tuple[str, ...]] = ("labels", "second_views")

    dimensions: Annotated[int, Ge(0), Le(65_536)] = 0
    temperature: Annotated[float, Ge(1e-3), Le(10)] = 0.2
    coarse_weight: Annotated[float, Ge(0), Le(100)] = 0.5
    momentum: Annotated[float, Ge(0), Le(1)] = 0.999
    queue: Annotated[int, Ge(1), Le(1_000_000)] = 65_536
    learning_rate: Annotated[float, Gt(0), Le(100)] = 0.03
    batch_size: Annotated[int, Ge(1), Le(65_536)] = 256
    epochs: Annotated[int, Ge(1), Le(10_000)] = 200

    def learn(self, examples: Examples, *, seed: int, progress: Progress) -> Projection:
        x, others, y = examples.features, examples.second_views, examples.labels
        assert others is not None
        assert y is not None
        if torch.equal(x, others):
            raise ValueError("the second views equal the first ones; each image needs two different views")
        matrix = principal_directions(x, self.dimensions or x.shape[1])
        slow = matrix.clone()
        queue = Queue(normalize(others[: self.queue] @ slow.T, dim=1).T)
        centers = class_means(x @ matrix.T, y, int(y.max()) + 1).T.contiguous()
        optimizer = torch.optim.SGD(
            [matrix.requires_grad_(), centers.requires_grad_()], lr=self.learning_rate, momentum=0.9, weight_decay=1e-4
        )
        descent = Descent(optimizer, batches(len(x), self.batch_size, self.epochs))
        for order in shuffled(x, self.epochs, seed=seed, progress=progress):
            for rows in order.split(self.batch_size):
                follow(slow, matrix, self.momentum)
                keys = normalize(others[rows] @ slow.T, dim=1)
                value = loss(
                    normalize(x[rows] @ matrix.T, dim=1),
                    keys,
                    queue.keys,
                    centers,
                    y[rows],
                    temperature=self.temperature,
                    weight=self.coarse_weight,
                )
                descent.step(value)
                queue.push(keys)
        return Projection(matrix.detach())


def loss(
    query: Tensor, keys: Tensor, queue: Tensor, centers: Tensor, y: Tensor, *, temperature: float, weight: float
) -> Tensor:
    """Scalar: CE of each image's own key against the queue's, plus weight times that of its coarse class.

    query, keys: (B, d) unit rows, the keys constants. queue: (d, Q) unit columns. centers: (d, C) of any length. y:
    (B,) int64 coarse classes. CoIns (arXiv 2005.09681).
    """
    own = (query * keys.detach()).sum(dim=1, keepdim=True)
    instance = torch.cat([own, query @ queue], dim=1) / temperature
    coarse = query @ normalize(centers, dim=0) / temperature
    return cross_entropy(instance, torch.zeros_like(y)) + weight * cross_entropy(coarse, y)


def follow(slow: Tensor, matrix: Tensor, momentum: float) -> None:
    """Move the keys' encoder a little towards that of the queries, in place."""
    slow.mul_(momentum).add_(matrix.detach(), alpha=1 - momentum)


class Queue:
    """The newest keys as columns (d, Q); the oldest go first."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys.clone()
        self._oldest = 0

    def push(self, keys: Tensor) -> None:
        """keys: (B, d) unit rows. In place: only after a loss's gradients were taken."""
        size = self.keys.shape[1]
        keys = keys[-size:]
        places = (self._oldest + torch.arange(len(keys), device=keys.device)) % size
        self.keys.index_copy_(1, places, keys.T)
        self._oldest = (self._oldest + len(keys)) % size
