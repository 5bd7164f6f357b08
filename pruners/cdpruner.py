"""CDPruner: keep tokens that are relevant to the question and differ from each other (arXiv 2506.10967)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.pruners.base import Objective, PruneInput, Pruner, highest
from covervlm.pruners.similarity import View, plain, scaled

_RANK_TOLERANCE = 1e-10
_ROWS_AT_ONCE = 32
"""Kernel rows of one product: those of the likeliest next picks, since one row at a time is read, not computed."""


@dataclass(frozen=True)
class CDPruner(Pruner):
    """Greedy MAP of a determinantal point process with kernel diag(r) S diag(r).

    S: cosine similarity of the projector outputs. r: relevance, scaled to [0, 1] over the allowed tokens; 1 everywhere
    without text or where all are alike. Tokens that add no volume (the kernel's rank is spent) follow in order of
    relevance.

    relevance: "clip" is the release's, the negative cosine of a patch to the question in CLIP's shared space, for
    models whose tower is that of a CLIP checkpoint which is there with its text tower. "words", for any model, is
    another method: the mean cosine of a projector output to the language model's embeddings of the question's words.
    """

    relevance: Literal["words", "clip"] = "words"

    uses_text: ClassVar[bool] = True
    view: ClassVar[View] = staticmethod(plain)

    @property
    def uses_clip(self) -> bool:
        return self.relevance == "clip"

    def pick(self, inputs: Sequence[PruneInput], counts: Sequence[int], objective: Objective) -> list[Tensor]:
        picks = []
        for image, count in zip(inputs, counts, strict=True):
            places = image.places
            tokens = image.tokens[places]
            units, weights = self.view(tokens)
            relevance = self._of_clip(image) if self.uses_clip else _of_words(tokens, image.text)
            picks.append(places[_greedy_map(units, weights * relevance, count)])
        return picks

    def _of_clip(self, image: PruneInput) -> Tensor:
        """(allowed tokens,) float64 in [0, 1]: the less a patch is like the question, the more relevant it is."""
        if image.clip_cosines is None:
            return torch.ones(len(image.places), dtype=torch.float64, device=image.tokens.device)
        return scaled(-image.clip_cosines[image.places].double())


def _of_words(tokens: Tensor, text: Tensor | None) -> Tensor:
    """(n,) float64 relevance in [0, 1] of tokens (n, d) to text (m, d)."""
    if text is None or len(text) == 0:
        return torch.ones(len(tokens), dtype=torch.float64, device=tokens.device)
    words = normalize(text.double(), dim=1, eps=1e-8)
    return scaled(normalize(tokens.double(), dim=1, eps=1e-8) @ words.mean(dim=0))


def _greedy_map(units: Tensor, weights: Tensor, count: int) -> Tensor:
    """Greedily maximise the determinant of the picked submatrix of the kernel weights * units @ units.T * weights.

    units: (n, d) of unit length, weights: (n,), both float64. Returns (count,) int64 in pick order. Incremental
    Cholesky (Chen et al. 2018, arXiv 1709.05135, algorithm 1) in O(n count (d + count)) and memory of n count numbers:
    no more rows of the kernel are made than the picks need. Once no index adds volume, the rest follow by their
    weights. The lowest index wins ties.
    """
    n = len(units)
    scaled_units = units * weights[:, None]
    volume = weights.square()  # the diagonal, exact, so that rounding decides no tie
    least = _RANK_TOLERANCE * volume.max()
    factors = units.new_zeros(count, n)
    order = torch.empty(count, dtype=torch.int64, device=units.device)
    rows: dict[int, Tensor] = {}
    for step in range(count):
        pick = int(volume.argmax())
        if volume[pick] <= least:
            left = torch.ones(n, dtype=torch.bool, device=units.device)
            left[order[:step]] = False
            order[step:] = highest(weights, count - step, left)
            break
        if pick not in rows:
            likely = highest(volume, min(_ROWS_AT_ONCE, n - step))
            rows = dict(zip(likely.tolist(), scaled_units[likely] @ scaled_units.T, strict=True))
        row = rows[pick] - factors[:step, pick] @ factors[:step]
        factors[step] = row / volume[pick].sqrt()
        volume -= factors[step].square()
        order[step] = pick
        volume[order[: step + 1]] = -torch.inf
    return order
