"""The coverage affinity on the CPU: two thirds of the vision product, no normalised copies, columns written in place.

The vision scores are symmetric, so only the blocks on and below the diagonal are multiplied and exponentiated; their
mirror images are filled in while the rows are divided by their sums. The result is stored transposed, which is how
the greedy reads it.
"""

import math

import torch
from torch import Tensor

from covervlm.kernels.affinity_inputs import AffinityInputs

_SPANS, _SMALLEST_SPAN = 3, 320
"""How the vision product is cut: three spans skip a third of it; more would skip little else but cost a meeting of
torch's threads each, which is long where the cores are shared, and shorter ones multiply at less than full speed."""

_SMALLEST_PLAIN_TAU = 1 / 60
"""Scores are at most 1 / tau: from here on their exponentials fit float32 without subtracting a maximum."""


def affinity(inputs: AffinityInputs) -> Tensor:
    """(B, m + n, n) float32 with contiguous columns; see `coverage_affinity`."""
    batch, n, _ = inputs.tokens.shape
    m = 0 if inputs.text is None else inputs.text.shape[1]
    rows = m + (0 if inputs.features is None else n)
    create = torch.zeros if inputs.ragged else torch.empty
    columns = create(batch, n, rows)
    for item in range(batch):
        words, count = int(inputs.text_lengths[item]), int(inputs.token_lengths[item])
        if inputs.text is not None and words:
            text, tokens = inputs.text[item, :words], inputs.tokens[item, :count]
            columns[item, :count, :words] = _text_rows(text, tokens, inputs.tau_text, inputs.check_finite).T
        if inputs.features is not None:
            features = inputs.features[item, :count].float()
            features = features / _norms("features", features, inputs.check_finite)
            out = columns[item, :count, m : m + count]
            _write_vision_columns(features, inputs.tau_vision, inputs.alpha / count, out)
    return columns.mT


def _norms(name: str, rows: Tensor, check_finite: bool) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if check_finite and not bool(norms.isfinite().all()):
        raise ValueError(f"{name} must be finite, but holds NaN, infinity or a row whose norm is infinite in float32")
    return norms.clamp_(min=1e-8)


def _text_rows(text: Tensor, tokens: Tensor, tau: float, check_finite: bool) -> Tensor:
    text, tokens = text.float(), tokens.float()
    scales = _norms("text", text, check_finite) * tau * _norms("tokens", tokens, check_finite).T
    return (text @ tokens.T).div_(scales).softmax(dim=1).div_(text.shape[0])


def _write_vision_columns(features: Tensor, tau: float, share: float, out: Tensor) -> None:
    n = features.shape[0]
    if tau < _SMALLEST_PLAIN_TAU:
        out.copy_((features @ features.T).div_(tau).softmax(dim=0).mul_(share))
        return
    scaled = features * tau**-0.5
    sums = torch.zeros(n)
    span = max(_SMALLEST_SPAN, math.ceil(n / _SPANS))
    spans = [(start, min(start + span, n)) for start in range(0, n, span)]
    for start, stop in spans:
        block = torch.mm(scaled[start:stop], scaled[:stop].T, out=out[start:stop, :stop]).exp_()
        sums[start:stop] += block.sum(dim=1)
        sums[:start] += block[:, :start].sum(dim=0)
    weights = share / sums
    for start, stop in spans:
        torch.mul(out[start:stop, :start].T, weights[start:stop], out=out[:start, start:stop])
        out[start:stop, :stop] *= weights[:stop]
