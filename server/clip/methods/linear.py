"""Softmax regression on frozen features: the baseline for everything that learns from labels."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from covervlm.server.clip.methods.contracts import Examples, Fit, Head, Progress

_SCORES = 2**23
"""How many scores are held at a time."""


@dataclass(frozen=True)
class Linear(Fit[Head]):
    """Softmax regression with an L2 penalty, to its minimum by L-BFGS: the baseline for learning from labels.

    `strength` is what scikit-learn calls C: the weight of the summed loss against half the squared norm.
    """

    needs: ClassVar[tuple[str, ...]] = ("labels",)

    strength: Annotated[float, Ge(1e-3), Le(1e6)] = 100.0
    iterations: Annotated[int, Ge(1), Le(10_000)] = 100

    def learn(self, examples: Examples, *, seed: int, progress: Progress) -> Head:
        x, y = examples.features, examples.labels
        assert y is not None
        proxies = regress(x, y, x.new_ones(len(x)), examples.classes, self.strength, self.iterations, progress)
        return Head(proxies, 1.0)


def regress(
    x: Tensor, y: Tensor, weights: Tensor, classes: int, strength: float, iterations: int, progress: Progress
) -> Tensor:
    """(d, C) minimising sum of weights * cross-entropy + |proxies|^2 / (2 strength) over examples x (n, d), y (n,).

    weights: (n,) of the examples. It ends when the largest entry of the gradient, for each example, is below 1e-6.
    Memory beyond the inputs: 44 matrices (d, C), and scores of 32 MiB in float32.
    """
    n, evaluations, most = len(x), 0, iterations * 5 // 4
    proxies = x.new_zeros(x.shape[1], classes)
    proxies.grad = gradient = torch.empty_like(proxies)

    def loss() -> float:
        nonlocal evaluations
        evaluations += 1
        torch.mul(proxies, 1 / (strength * n), out=gradient)
        total = float(proxies.square().sum()) / (2 * strength)
        rows = max(1, _SCORES // classes)
        for batch, labels, shares in zip(x.split(rows), y.split(rows), weights.split(rows), strict=True):
            logs = torch.log_softmax(batch @ proxies, dim=1)
            total -= float((logs.gather(1, labels[:, None]).squeeze(1) * shares).sum())
            residuals = logs.exp_().scatter_add_(1, labels[:, None], logs.new_full((len(batch), 1), -1.0))
            gradient.addmm_(batch.T, residuals.mul_(shares[:, None]), alpha=1 / n)
        progress(min(1.0, evaluations / most), loss=round(total / n, 6))
        return total / n

    torch.optim.LBFGS(
        [proxies],
        max_iter=iterations,
        max_eval=most,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    ).step(loss)
    progress(1.0)
    return proxies.detach()
