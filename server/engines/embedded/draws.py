"""Draws of a whole batch at once: temperature, min_p, top_k and top_p of every row, and one random number for each.

A race decides: each token arrives after an exponential time whose rate is its probability, and the first one is drawn,
which has just that probability. Last digits of the logits, which depend on what else is in the batch, then matter in a
dead heat alone. A number looked up in the running sum of the probabilities is near the bound of two tokens far more
often: of a flat distribution of 150,000, last digits changed one draw in some hundreds.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_CANDIDATES = 128, 4096
"""How many of the likeliest tokens are looked at first, and then where truncation keeps more: all are sorted last."""

_GOLDEN, _FIRST, _SECOND = 0x9E3779B1 - 2**32, 0x85EBCA6B - 2**32, 0xC2B2AE35 - 2**32
"""2^32 over the golden ratio, a prime, and the factors of MurmurHash3's last mix of 32 bits, as signed numbers."""

_AT_ONCE = 2**17
"""How many arrival times are made at once: more would leave the processor's caches."""


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


def draw(logits: Tensor, truncation: Truncation, seeds: Tensor) -> Tensor:
    """The next token of every row, (R,) int64.

    logits: (R, V), of which every row has a finite highest one. seeds: (R,) int32, what each row's own
    generator says; a row's token depends on nothing else in the batch.
    """
    size = logits.shape[1]
    tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    cut = (truncation.min_p > 0) | (truncation.top_k < size) | (truncation.top_p < 1)
    if len(rows := (~cut).nonzero()[:, 0]):
        every = torch.arange(size, device=logits.device).expand(len(rows), size)
        tokens[rows] = _first(_weights(logits[rows], truncation.temperature[rows]), every, seeds[rows])
    rows = cut.nonzero()[:, 0]
    for candidates in (*(some for some in _CANDIDATES if some < size), size):
        if not len(rows):
            break
        weights, order, whole = _kept(logits[rows], truncation.of(rows), candidates)
        done = rows[whole]
        order = order[whole]
        tokens[done] = order.gather(1, _first(weights[whole], order, seeds[done])[:, None])[:, 0]
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


def _first(weights: Tensor, tokens: Tensor, seeds: Tensor) -> Tensor:
    """(R,): the place of the token (R, n) that arrives first, of those whose weight (R, n) is not 0."""
    rows = max(1, _AT_ONCE // weights.shape[1])
    if len(weights) > rows and not weights.is_cuda:
        parts = (each.split(rows) for each in (weights, tokens, seeds))
        return torch.cat([_first(*part) for part in zip(*parts, strict=True)])
    return weights.div(_unit_exponentials(tokens, seeds)).argmax(1)


def _unit_exponentials(tokens: Tensor, seeds: Tensor) -> Tensor:
    """(R, n) float32 above 0: of each row's seed (R,) and each token id (R, n), as if drawn independently.

    A hash of both, so that a token's time does not depend on which tokens are looked at.
    """
    mixed = tokens.int().mul(_GOLDEN).add_(seeds.int()[:, None])
    for shift, factor in ((16, _FIRST), (13, _SECOND), (16, 1)):
        mixed = mixed.bitwise_xor_((mixed >> shift).bitwise_and_(2 ** (32 - shift) - 1)).mul_(factor)
    # The smallest decide. They keep their digits in single precision: 31 bits, none of them exactly 0 or 1.
    uniform = mixed.bitwise_and_(2**31 - 1).float().add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_()
