"""SeA: softmax regression on features that are moved towards those they could be mistaken for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.clip.methods.contracts import Examples, Fit, Head, Progress
from covervlm.server.clip.methods.epochs import shuffled


@dataclass(frozen=True)
class SeA(Fit[Head]):
    """Linear head learned on features moved by `eta` towards those they could be mistaken for (arXiv 2408.13351).

    It starts from the classes' text where there is any, else from the means of their examples. `eta` is worth choosing
    on held-out examples, 0 among the choices: on some data it costs accuracy. It ends after `epochs`, or with the last
    whole epoch of `steps`, so that many examples take no longer; one epoch is always learned.
    """

    needs: ClassVar[tuple[str, ...]] = ("labels",)
    tuned: ClassVar[Mapping[str, tuple[float, ...]]] = {"eta": (0.0, 0.2, 0.5, 0.8)}

    eta: Annotated[float, Ge(0), Le(10)] = 0.5
    alpha: Annotated[float, Ge(1e-3), Le(10)] = 0.01
    delta: Annotated[float, Ge(0), Le(10)] = 0.0
    lam: Annotated[float, Ge(1e-3), Le(10)] = 0.1
    learning_rate: Annotated[float, Gt(0), Le(1000)] = 1.6
    momentum: Annotated[float, Ge(0), Le(0.999)] = 0.9
    weight_decay: Annotated[float, Ge(0), Le(1)] = 1e-6
    batch_size: Annotated[int, Ge(1), Le(65_536)] = 256
    epochs: Annotated[int, Ge(1), Le(10_000)] = 100
    steps: Annotated[int, Ge(1), Le(10_000_000)] = 2000

    def learn(self, examples: Examples, *, seed: int, progress: Progress) -> Head:
        x, y = examples.features, examples.labels
        assert y is not None
        start = class_means(x, y, examples.classes) if examples.text is None else examples.text.T
        epochs = min(self.epochs, max(1, self.steps // -(-len(x) // self.batch_size)))
        order = shuffled(x, epochs, seed=seed, progress=progress)
        w = train(
            x,
            y,
            start,
            order,
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            alpha=self.alpha,
            delta=self.delta,
            eta=self.eta,
            lam=self.lam,
            batch_size=self.batch_size,
        )
        return Head(w.T.contiguous(), self.lam)


def semantic_directions(x: Tensor, y: Tensor, w: Tensor, *, alpha: float, delta: float, lam: float) -> Tensor:
    """(B, d) unit directions: each row's mixture of the other rows, by how they lie along its adversarial direction.

    x: (B, d) unit rows. y: (B,) int64. w: (C, d). Row i mixes the rows j != i with softmax(g_i x_j / alpha), where g_i
    is the unit gradient of its loss; a row without gradient mixes all alike. B = 1 has no others: zeros. SeA (arXiv
    2408.13351).
    """
    if len(x) == 1:
        return torch.zeros_like(x)
    return normalize(_mixtures(x, y, x @ w.T, w, alpha, delta, lam) @ x, dim=1)


def train(
    x: Tensor,
    y: Tensor,
    w: Tensor,
    order: Iterable[Tensor],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    alpha: float,
    delta: float,
    eta: float,
    lam: float,
    batch_size: int,
) -> Tensor:
    """(C, d) after an epoch of SGD for each row of `order`, from w (C, d), which stays as it is.

    x: (n, d) unit rows. y: (n,) int64. order: (epochs, n), the permutation of every epoch, or an iterable of its rows.
    The loss is lam * CE((x w.T - delta at y) / lam), on augmented rows while eta > 0; classify by the largest of x w.T.
    Memory beyond the inputs: O(batch_size * (C + d + batch_size) + C * d).
    """
    w, velocity = w.clone(), torch.zeros_like(w)
    for epoch in order:
        for rows in epoch.split(batch_size):
            batch, labels = x[rows], y[rows]
            logits = batch @ w.T
            if eta > 0 and len(rows) > 1:
                mixtures = _mixtures(batch, labels, logits, w, alpha, delta, lam)
                mixed = mixtures @ batch
                share = eta / mixed.norm(dim=1, keepdim=True).clamp_min_(1e-12)
                moved = batch + share * mixed
                length = moved.norm(dim=1, keepdim=True).clamp_min_(1e-12)
                # Logits are linear in the features: mixing those at hand is a third of the work of making new ones.
                batch, logits = moved / length, (logits + share * (mixtures @ logits)) / length
            residuals = _residuals(logits, labels, delta, lam)
            velocity.addmm_(residuals.T, batch, beta=momentum, alpha=1 / len(rows)).add_(w, alpha=weight_decay)
            w.add_(velocity, alpha=-lr)
    return w


def class_means(x: Tensor, y: Tensor, classes: int) -> Tensor:
    """(C, d) unit means of each class's rows, zero for a class without any."""
    return normalize(x.new_zeros(classes, x.shape[1]).index_add_(0, y, x), dim=1)


def _mixtures(x: Tensor, y: Tensor, logits: Tensor, w: Tensor, alpha: float, delta: float, lam: float) -> Tensor:
    """(B, B) the share of each other row in every row's semantic direction."""
    residuals = _residuals(logits, y, delta, lam)
    # In units of each row's largest, so that the gradient of a sure row does not vanish.
    residuals.div_(residuals.amax(dim=1, keepdim=True).clamp_min_(torch.finfo(x.dtype).tiny))
    scores = (normalize(residuals @ w, dim=1) @ x.T).div_(alpha).fill_diagonal_(float("-inf"))
    return torch.softmax(scores, dim=1)


def _residuals(logits: Tensor, y: Tensor, delta: float, lam: float) -> Tensor:
    """(B, C) probabilities minus one-hot labels.

    The true class's entry is minus the sum of the others: 1 - p would leave nothing but rounding of a sure answer.
    """
    column = y[:, None]
    if delta:
        logits = logits.scatter_add(1, column, logits.new_full(column.shape, -delta))
    residuals = torch.softmax(logits / lam, dim=1).scatter_(1, column, 0)
    return residuals.scatter_(1, column, -residuals.sum(dim=1, keepdim=True))
