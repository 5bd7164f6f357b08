"""Heads that are as good on small groups of examples as on large ones."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

from covervlm.server.clip.methods.contracts import Examples, Fit, Head, Progress
from covervlm.server.clip.methods.linear import regress


@dataclass(frozen=True)
class Groups(Fit[Head]):
    """`linear` with every group of examples weighing the same, however large; without groups, every class.

    The balanced form of hierarchically robust learning (arXiv 1911.04047), in which no group may be neglected.
    """

    needs: ClassVar[tuple[str, ...]] = ("labels",)
    balanced: ClassVar[bool] = True

    strength: Annotated[float, Ge(1e-3), Le(1e6)] = 100.0
    iterations: Annotated[int, Ge(1), Le(10_000)] = 100

    def learn(self, examples: Examples, *, seed: int, progress: Progress) -> Head:
        x, y = examples.features, examples.labels
        assert y is not None
        weights = balanced_weights(y if examples.groups is None else examples.groups).to(x.dtype)
        return Head(regress(x, y, weights, examples.classes, self.strength, self.iterations, progress), 1.0)


def balanced_weights(groups: Tensor) -> Tensor:
    """(n,) float64 with the same sum in every group that occurs, and mean 1. groups: (n,) int64."""
    _, place, sizes = groups.unique(return_inverse=True, return_counts=True)
    return len(groups) / (len(sizes) * sizes[place].double())


def play(
    x: Tensor,
    y: Tensor,
    groups: Tensor,
    w: Tensor,
    batches: Iterable[Tensor],
    *,
    rate: float,
    group_rate: float,
    lambda_p: float,
    lambda_w: float = float("inf"),
    regulariser: Literal["kl", "l2"] = "kl",
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimax learning, by descent of a head and ascent of the groups' weights: the head (C, d), weights and losses.

    x: (n, d), y and groups: (n,) int64, w: (C, d) to start from, batches: rows drawn uniformly from all n. lambda_p
    pulls the weights to uniform ones; features are moved by their loss's gradient / lambda_w. A step's loss is the mean
    of its examples', each as often as its group's weight asks. Balanced weights did better where this was measured.
    """
    n, sizes = len(x), torch.bincount(groups).to(x.dtype)
    w = w.clone()
    prior = x.new_full((len(sizes),), 1 / len(sizes))
    p, weights, losses = prior.clone(), [], []
    for rows in batches:
        batch, labels, own = x[rows], y[rows], groups[rows]
        if lambda_w < float("inf"):
            residuals = torch.softmax(batch @ w.T, dim=1) - one_hot(labels, len(w))
            batch = batch + residuals @ w / lambda_w
        logits = batch @ w.T
        each = cross_entropy(logits, labels, reduction="none")
        shares = p[own] * n / sizes[own]
        residuals = (torch.softmax(logits, dim=1) - one_hot(labels, len(w))) * shares[:, None]
        found = torch.zeros_like(p).index_add_(0, own, each) * n / (sizes * len(rows))
        w.sub_(residuals.T @ batch / len(rows), alpha=rate / float((p * n / sizes).max()))
        if regulariser == "kl":
            p = normalize(p * torch.exp(group_rate * (found - lambda_p * (p / prior).log())), p=1, dim=0)
        else:
            p = onto_simplex(p + group_rate * (found - lambda_p * (p - prior)))
        weights.append(p)
        losses.append((shares * each).mean())
    return w, torch.stack(weights), torch.stack(losses)


def best_response(losses: Tensor, *, lambda_p: float) -> Tensor:
    """(G,) weights that the groups would choose against a head with losses (G,): softmax(losses / lambda_p)."""
    return torch.softmax(losses / lambda_p, dim=0)


def onto_simplex(values: Tensor) -> Tensor:
    """(G,) the nearest point to values (G,) whose entries are at least 0 and sum to 1."""
    ordered = values.sort(descending=True).values
    excess = (ordered.cumsum(0) - 1) / torch.arange(1, len(values) + 1, device=values.device)
    return (values - excess[int((ordered > excess).sum()) - 1]).clamp_min(0)
