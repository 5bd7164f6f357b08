"""Text-guided mixup: rare classes learn from mixtures with the classes that their names resemble."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.clip.methods.contracts import Examples, Head, Progress
from covervlm.server.clip.methods.epochs import shuffled
from covervlm.server.clip.methods.margin import Batch, Margin, fit_map


@dataclass(frozen=True)
class TextMixup(Margin):
    """`margin` on mixtures of examples whose classes' texts are alike; the rarer class gets more of the label.

    It trades accuracy on frequent classes for accuracy on rare ones. Embeddings are mixed, where arXiv 2409.03583
    mixes pixels. `alpha` shifts labels to the rarer class, `tau` makes distant classes partners, `beta` near 0 mixes
    little.
    """

    tuned: ClassVar[Mapping[str, tuple[float, ...]]] = {"alpha": (0.0, 0.5, 1.0)}

    alpha: Annotated[float, Ge(0), Le(10)] = 1.0
    tau: Annotated[float, Ge(1e-3), Le(100)] = 0.05
    beta: Annotated[float, Ge(1e-3), Le(10)] = 0.2

    def learn(self, examples: Examples, *, seed: int, progress: Progress) -> Head:
        x, y, text = examples.features, examples.labels, examples.text
        assert y is not None
        assert text is not None
        counts = torch.bincount(y, minlength=text.shape[1])
        partners = Partners(y, partner_probabilities(text.T, tau=self.tau), seed=seed)
        drawn = np.random.default_rng(seed)

        def batches() -> Iterator[Batch]:
            for order in shuffled(x, self.epochs, seed=seed, progress=progress):
                for rows in order.split(self.batch_size):
                    others, share = partners.draw(rows), float(drawn.beta(self.beta, self.beta))
                    mixed = share * x[rows] + (1 - share) * x[others]
                    yield mixed, mixed_labels(y[rows], y[others], counts, share, alpha=self.alpha).to(x.dtype)

        return fit_map(batches(), self.epochs * -(-len(x) // self.batch_size), x, text, self)


def partner_probabilities(text: Tensor, *, tau: float) -> Tensor:
    """(K, K) rows of the softmax of cosines / tau over the other classes, zero for the class itself.

    text: (K, d) of any length, K >= 2. Text-guided mixup (arXiv 2409.03583).
    """
    unit = normalize(text, dim=1)
    return torch.softmax((unit @ unit.T / tau).fill_diagonal_(float("-inf")), dim=1)


def mixed_labels(y: Tensor, partner: Tensor, counts: Tensor, share: float, *, alpha: float) -> Tensor:
    """(B, K) shares of both classes in mixtures of `share` of y with partner, (B,) each; the rarer gets more.

    counts: (K,) examples of each class.
    """
    own, other = counts[y].double(), counts[partner].double()
    kept = (share - alpha * (own - other) / (own + other)).clamp(0, 1)
    labels = kept.new_zeros(len(y), len(counts))
    labels.scatter_add_(1, y[:, None], kept[:, None])
    return labels.scatter_add_(1, partner[:, None], 1 - kept[:, None])


class Partners:
    """Draws partners: a class by the given probabilities, and of its examples each once before any repeats.

    y: (n,) labels. probabilities: (K, K). Classes without examples are not drawn; where no other class has any, an
    example is its own partner. How classes are numbered changes nothing: they are drawn by falling probability, and
    each has its cycle of examples from one order of them all.
    """

    def __init__(self, y: Tensor, probabilities: Tensor, *, seed: int) -> None:
        self._y = y
        self._generator = torch.Generator().manual_seed(seed)
        counts = torch.bincount(y, minlength=len(probabilities))
        chances, self._classes = (probabilities * (counts > 0)).double().sort(dim=1, descending=True)
        self._edges = chances.cumsum(dim=1)
        self._members = [(y == c).nonzero().squeeze(1) for c in range(len(probabilities))]
        self._left: list[list[int]] = [[] for _ in self._members]

    def draw(self, rows: Tensor) -> Tensor:
        """(B,) rows of the partners of these rows."""
        own = self._y[rows]
        edges, chance = self._edges[own], torch.rand(len(rows), 1, generator=self._generator, dtype=torch.float64)
        drawn = torch.searchsorted(edges, chance.to(edges.device) * edges[:, -1:], right=True)
        classes = self._classes[own].gather(1, drawn.clamp_max_(edges.shape[1] - 1)).squeeze(1)
        alone = edges[:, -1] <= 0
        drawn_from = zip(rows.tolist(), classes.tolist(), alone.tolist(), strict=True)
        found = [row if single else self._next(label) for row, label, single in drawn_from]
        return torch.tensor(found, device=rows.device)

    def _next(self, label: int) -> int:
        if not self._left[label]:
            members = self._members[label].cpu()
            self._left[label] = members[torch.randperm(len(members), generator=self._generator)].tolist()
        return self._left[label].pop()
