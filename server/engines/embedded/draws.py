"""Draws of a whole batch at once: temperature, min_p, top_k and top_p of every row, and one random number for each."""

from dataclasses import dataclass

import torch
from torch import Tensor

_CANDIDATES = 128, 4096
"""How many of the likeliest tokens are looked at first, and then where truncation keeps more: all are sorted last."""


@dataclass(frozen=True, eq=False)
class Truncation:
    """How rows are drawn from, one entry a row, (R,), on the device of the logits.

    temperature: float64, above 0. min_p: float64, 0 for none. top_k: int64, the size of the vocabulary for all.
    top_p: float64, 1 for all. As in vLLM and transformers, they apply in this order.
    """

    temperature: Tensor
    min_p: Tensor
    top_k: Tensor
    top_p: Tensor

    def of(self, rows: Tensor) -> "Truncation":
        return Truncation(self.temperature[rows], self.min_p[rows], self.top_k[rows], self.top_p[rows])


def draw(logits: Tensor, truncation: Truncation, uniform: Tensor) -> Tensor:
    """The next token of every row, (R,) int64.

    logits: (R, V), of which every row has a finite highest one. uniform: (R,) float64 in [0, 1), what each row's own
    generator says; a row's token depends on nothing else in the batch.
    """
    size = logits.shape[1]
    tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    cut = (truncation.min_p > 0) | (truncation.top_k < size) | (truncation.top_p < 1)
    if len(rows := (~cut).nonzero()[:, 0]):
        tokens[rows] = _pick(_weights(logits[rows], truncation.temperature[rows]), uniform[rows])
    rows = cut.nonzero()[:, 0]
    for candidates in (*(some for some in _CANDIDATES if some < size), size):
        if not len(rows):
            break
        weights, order, whole = _kept(logits[rows], truncation.of(rows), candidates)
        done = rows[whole]
        tokens[done] = order[whole].gather(1, _pick(weights[whole], uniform[done])[:, None])[:, 0]
        rows = rows[~whole]
    return tokens


def _weights(logits: Tensor, temperature: Tensor) -> Tensor:
    """Probabilities of tokens (R, V) up to a factor: 1 for each row's likeliest."""
    return logits.sub(logits.amax(1, keepdim=True)).div_(temperature[:, None]).exp_()


def _kept(logits: Tensor, truncation: Truncation, candidates: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the likeliest tokens of each row: weights (R, n), 0 for what is cut; their ids (R, n), the likeliest first.

    And (R,) bool: whether nothing but these tokens is kept.
    """
    size = logits.shape[1]
    best, order = logits.topk(candidates)
    weights = _weights(best.double(), truncation.temperature)
    kept = (weights >= truncation.min_p[:, None]) & (best > -torch.inf)
    # Of tokens as likely as the last that top_k keeps, all stay.
    last = best.gather(1, truncation.top_k[:, None].clamp(max=candidates) - 1)
    kept &= (truncation.top_k[:, None] >= candidates) | (best >= last)
    weights *= kept
    # What top_p is a share of: all that is left, and where that reaches beyond these tokens, the others too.
    total = weights.sum(1)
    beyond = kept[:, -1].nonzero()[:, 0]
    if candidates < size and len(beyond):
        every = _weights(logits[beyond], truncation.temperature[beyond])
        every *= every >= truncation.min_p[beyond, None]
        total[beyond] = every.sum(1, dtype=torch.float64)
    # Where top_k cuts beyond these tokens, or among equals at their end, the whole is not known yet.
    unknown = kept[:, -1] & (truncation.top_k < size)
    share = truncation.top_p[:, None]
    kept &= (weights.cumsum(1) - weights < share * total[:, None]) | (share >= 1)
    kept[:, 0] = True
    return weights * kept, order, ~(kept[:, -1] | unknown) | (candidates == size)


def _pick(weights: Tensor, uniform: Tensor) -> Tensor:
    """(R,): the place at which the running sum of weights (R, n) first exceeds a share of the whole."""
    sums = weights.cumsum(1)
    total = sums[:, -1]
    # Below the whole even where the product rounds up, so that no weight of 0 at the end is taken.
    threshold = torch.minimum((uniform * total).to(total.dtype), total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(sums, threshold[:, None], right=True)[:, 0]
