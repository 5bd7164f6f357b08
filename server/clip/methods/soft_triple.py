"""SoftTriple: a space for search in which each class gathers around centres of its own."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from covervlm.server.clip.methods.contracts import Examples, Fit, Progress, Projection
from covervlm.server.clip.methods.epochs import shuffled


@dataclass(frozen=True)
class SoftTriple(Fit[Projection]):
    """A linear map for search under which each class gathers around `centers` centres (arXiv 1909.05235).

    It serves classes that it never saw. `dimensions` 0 keeps those of the features; fewer start from their principal
    directions.
    """

    needs: ClassVar[tuple[str, ...]] = ("labels",)

    dimensions: Annotated[int, Ge(0), Le(65_536)] = 0
    centers: Annotated[int, Ge(1), Le(1000)] = 1
    scale: Annotated[float, Ge(1e-3), Le(1000)] = 20.0
    gamma: Annotated[float, Ge(1e-3), Le(10)] = 0.1
    tau: Annotated[float, Ge(0), Le(100)] = 0.2
    margin: Annotated[float, Ge(0), Le(2)] = 0.01
    learning_rate: Annotated[float, Gt(0), Le(10)] = 1e-3
    center_learning_rate: Annotated[float, Gt(0), Le(10)] = 1e-2
    batch_size: Annotated[int, Ge(1), Le(65_536)] = 32
    epochs: Annotated[int, Ge(1), Le(10_000)] = 50

    def learn(self, examples: Examples, *, seed: int, progress: Progress) -> Projection:
        x = examples.features
        assert examples.labels is not None
        known, y = examples.labels.unique(return_inverse=True)
        matrix = principal_directions(x, self.dimensions or x.shape[1])
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
        centers = _first_centers(x[order] @ matrix.T, y[order], len(known), self.centers)
        groups = [
            {"params": [matrix.requires_grad_()], "lr": self.learning_rate},
            {"params": [centers.requires_grad_()], "lr": self.center_learning_rate},
        ]
        optimizer = torch.optim.Adam(groups, eps=0.01, weight_decay=1e-4)
        decay = torch.optim.lr_scheduler.StepLR(optimizer, 20)
        for epoch in shuffled(x, self.epochs, seed=seed, progress=progress):
            for rows in epoch.split(self.batch_size):
                value = loss(
                    normalize(x[rows] @ matrix.T, dim=1),
                    centers,
                    y[rows],
                    classes=len(known),
                    scale=self.scale,
                    gamma=self.gamma,
                    tau=self.tau,
                    margin=self.margin,
                )
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
            decay.step()
        return Projection(matrix.detach())


def similarity(x: Tensor, centers: Tensor, *, classes: int, gamma: float) -> Tensor:
    """(B, classes): cosines with each class's centres, averaged with the closest ones weighing most.

    x: (B, d) unit rows. centers: (d, classes * k) of any length, those of a class side by side.
    """
    cosines = (x @ normalize(centers, dim=0)).unflatten(1, (classes, -1))
    return (torch.softmax(cosines / gamma, dim=2) * cosines).sum(dim=2)


def loss(
    x: Tensor,
    centers: Tensor,
    y: Tensor,
    *,
    classes: int,
    scale: float,
    gamma: float,
    tau: float,
    margin: float,
) -> Tensor:
    """Scalar: CE of scale * (similarity - margin at y), plus tau times the mean distance of a class's centres.

    x: (B, d) unit rows. centers: (d, classes * k), those of a class side by side. y: (B,) int64. SoftTriple (arXiv
    1909.05235).
    """
    column = y[:, None]
    scores = similarity(x, centers, classes=classes, gamma=gamma)
    scores = scores.scatter_add(1, column, scores.new_full(column.shape, -margin))
    value = cross_entropy(scale * scores, y)
    each = centers.shape[1] // classes
    if tau == 0 or each == 1:
        return value
    own = normalize(centers, dim=0).T.unflatten(0, (classes, each))
    first, second = torch.triu_indices(each, each, offset=1, device=x.device)
    # The 1e-5 keeps the root's gradient finite where centres have merged.
    apart = (2 + 1e-5 - 2 * (own @ own.mT)[:, first, second]).sqrt().sum()
    return value + tau * apart / (classes * each * (each - 1))


def principal_directions(x: Tensor, dimensions: int) -> Tensor:
    """(d', d): the identity for as many dimensions as x (n, d) has, else the directions in which x is largest."""
    d = x.shape[1]
    if dimensions > d:
        raise ValueError(f"features of {d} dimensions cannot be projected to {dimensions}; ask for at most {d}")
    if dimensions == d:
        return torch.eye(d, dtype=x.dtype, device=x.device)
    return torch.linalg.eigh(x.T @ x).eigenvectors[:, -dimensions:].flip(1).T.contiguous()


def _first_centers(x: Tensor, y: Tensor, classes: int, each: int) -> Tensor:
    """(d', classes * each): means of parts of each class, to which its rows are dealt out in turn."""
    place = torch.empty_like(y)
    for label in range(classes):
        members = y == label
        place[members] = torch.arange(int(members.sum()), device=y.device) % each
    flat = x.new_zeros(classes * each, x.shape[1]).index_add_(0, y * each + place, x)
    whole = x.new_zeros(classes, x.shape[1]).index_add_(0, y, x).repeat_interleave(each, dim=0)
    empty = torch.bincount(y * each + place, minlength=classes * each) == 0
    return normalize(torch.where(empty[:, None], whole, flat), dim=1).T.contiguous()
