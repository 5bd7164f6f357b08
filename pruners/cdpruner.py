"""CDPruner: keep tokens that are relevant to the question and differ from each other (arXiv 2506.10967)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.pruners.base import Objective, PruneInput, Pruner, highest

_RANK_TOLERANCE = 1e-10


@dataclass(frozen=True)
class CDPruner(Pruner):
    """Greedy MAP of a determinantal point process with kernel diag(r) S diag(r).

    S: cosine similarity of the vision features. r: relevance, the mean cosine similarity of a projector output to the
    question's words, scaled to [0, 1] over the allowed tokens; 1 everywhere without text or where all are alike.
    Tokens that add no volume (the kernel's rank is spent) follow in order of relevance.
    """

    uses_text: ClassVar[bool] = True

    def pick(self, inputs: Sequence[PruneInput], counts: Sequence[int], objective: Objective) -> list[Tensor]:
        picks = []
        for image, count in zip(inputs, counts, strict=True):
            places = torch.arange(len(image.tokens), device=image.tokens.device)
            if image.allowed is not None:
                places = places[image.allowed]
            weights = relevance(image.tokens[places], image.text)
            features = normalize(image.features[places].double(), dim=1, eps=1e-8)
            similarity = (features @ features.T).fill_diagonal_(1.0)  # exactly 1, so that rounding decides no tie
            picks.append(places[greedy_map(weights[:, None] * similarity * weights, count)])
        return picks


def relevance(tokens: Tensor, text: Tensor | None) -> Tensor:
    """(n,) float64 relevance in [0, 1] of tokens (n, d) to text (m, d)."""
    if text is None or len(text) == 0:
        return torch.ones(len(tokens), dtype=torch.float64, device=tokens.device)
    words = normalize(text.double(), dim=1, eps=1e-8)
    similarity = (normalize(tokens.double(), dim=1, eps=1e-8) @ words.T).mean(dim=1)
    low, high = similarity.aminmax()
    return (similarity - low) / (high - low) if high > low else torch.ones_like(similarity)


def greedy_map(kernel: Tensor, count: int) -> Tensor:
    """Greedily maximise the determinant of the picked submatrix of a PSD kernel (n, n): (count,) int64, in pick order.

    Incremental Cholesky, O(n count²) (Chen et al. 2018, arXiv 1709.05135, algorithm 1). Once no index adds volume, the
    rest follow by their diagonal entries. The lowest index wins ties.
    """
    n = len(kernel)
    diagonal = kernel.diagonal()
    volume = diagonal.clone()
    factors = kernel.new_zeros(count, n)
    order = torch.empty(count, dtype=torch.int64, device=kernel.device)
    for step in range(count):
        pick = volume.argmax()
        if volume[pick] <= _RANK_TOLERANCE * diagonal.max():
            left = torch.ones(n, dtype=torch.bool, device=kernel.device)
            left[order[:step]] = False
            order[step:] = highest(diagonal, count - step, left)
            break
        factors[step] = (kernel[pick] - factors[:step, pick] @ factors[:step]) / volume[pick].sqrt()
        volume -= factors[step].square()
        order[step] = pick
        volume[order[: step + 1]] = -torch.inf
    return order
