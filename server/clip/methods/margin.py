"""The margin metric softmax: a map of the features under which the classes' text separates them by a margin."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from covervlm.server.clip.methods.contracts import Examples, Fit, Head, Progress
from covervlm.server.clip.methods.epochs import Descent, batches, shuffled

Batch = tuple[Tensor, Tensor]
"""Features (B, d) and the share of each class in them, (B, K)."""


@dataclass(frozen=True)
class Margin(Fit[Head]):
    """A map that takes features closer to their class's text than to others, by a margin that grows as texts differ.

    Good for rare classes, since those without examples still have their text. The second phase of arXiv 2409.03583
    without its mixup: a (d, d) map from the identity, learned by Adam with cosine decay.
    """

    needs: ClassVar[tuple[str, ...]] = ("text", "labels")

    margin: Annotated[float, Ge(0), Le(10)] = 0.3
    temperature: Annotated[float, Ge(1e-3), Le(10)] = 0.01
    learning_rate: Annotated[float, Gt(0), Le(10)] = 0.01
    batch_size: Annotated[int, Ge(1), Le(65_536)] = 32
    epochs: Annotated[int, Ge(1), Le(10_000)] = 10

    def learn(self, examples: Examples, *, seed: int, progress: Progress) -> Head:
        x, y, text = examples.features, examples.labels, examples.text
        assert y is not None
        assert text is not None
        shares = torch.eye(text.shape[1], dtype=x.dtype, device=x.device)
        orders = shuffled(x, self.epochs, seed=seed, progress=progress)
        pairs = ((x[rows], shares[y[rows]]) for order in orders for rows in order.split(self.batch_size))
        return fit_map(pairs, batches(len(x), self.batch_size, self.epochs), x, text, self)


def loss(cosines: Tensor, text: Tensor, y: Tensor, *, margin: float, temperature: float) -> Tensor:
    """Mean cross-entropy of cosines (B, K) for labels y, where every other class is given a head start.

    Class c starts margin * (1 - its text's cosine with the true class's) ahead. text: (K, d) of any length. y: (B,)
    int64, or the classes' shares (B, K): then the mean over the classes by their shares, each as the true one.
    """
    unit = normalize(text, dim=1)
    apart = (1 - unit @ unit.T).mul(margin)
    if y.ndim == 1:
        return cross_entropy((cosines + apart[y]) / temperature, y)
    rows, classes = y.nonzero(as_tuple=True)
    each = cross_entropy((cosines[rows] + apart[classes]) / temperature, classes, reduction="none")
    return (each * y[rows, classes]).sum() / len(y)


def fit_map(pairs: Iterator[Batch], steps: int, x: Tensor, text: Tensor, method: Margin) -> Head:
    """The head of the map that Adam finds in so many steps. text: (d, K)."""
    matrix = torch.eye(len(text), dtype=x.dtype, device=x.device, requires_grad=True)
    adam = torch.optim.Adam([matrix], lr=method.learning_rate)
    descent = Descent(adam, steps, least=method.learning_rate / 1000)
    for features, shares in pairs:
        cosines = normalize(features @ matrix.T, dim=1) @ text
        descent.step(loss(cosines, text.T, shares, margin=method.margin, temperature=method.temperature))
    return mapped_head(matrix.detach(), text, x, method.temperature)


def mapped_head(matrix: Tensor, text: Tensor, x: Tensor, temperature: float) -> Head:
    """The head that labels features by the cosines of matrix (d, d) @ feature with text (d, K).

    These are linear in the feature but for the mapped one's length. That changes no label; for confidences it is
    taken to be its mean over x (n, d).
    """
    length = torch.cat([(rows @ matrix.T).norm(dim=1) for rows in x.split(4096)]).mean().clamp_min(1e-6)
    return Head(matrix.T @ text / length, temperature)
