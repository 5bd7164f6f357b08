"""The coverage affinity on the CPU: two thirds of the vision product, no normalised copies, columns written in place.

The vision scores are symmetric, so only the blocks on and below the diagonal are multiplied and exponentiated; their
mirror images are filled in while the rows are divided by their sums. The result is stored transposed, which is how
the greedy reads it.
"""

import math

import torch
from torch import Tensor

_SPANS, _SMALLEST_SPAN = 3, 320
"""How the vision product is cut. Three spans skip a third of it. More would skip little more, and after each span
torch's threads wait for one another, which takes long on shared cores; short spans also multiply more slowly."""

_SMALLEST_PLAIN_TAU = 1 / 60
"""Scores are at most 1 / tau: down to this tau their exponentials fit float32 without subtracting a maximum."""


def affinity(
    text: Tensor | None,
    tokens: Tensor,
    features: Tensor | None,
    text_lengths: Tensor,
    token_lengths: Tensor,
    *,
    tau_text: float,
    tau_vision: float,
    alpha: float,
    check_finite: bool,
) -> Tensor:
    """With contiguous columns; see `coverage_affinity.Backend`."""
    batch, n, _ = tokens.shape
    m = 0 if text is None else text.shape[1]
    rows = m + (0 if features is None else n)
    lengths = list(zip(text_lengths.tolist(), token_lengths.tolist(), strict=True))
    padded = any(length != (m, n) for length in lengths)
    columns = torch.zeros(batch, n, rows) if padded else torch.empty(batch, n, rows)
    for item, (words, count) in enumerate(lengths):
        if text is not None and words:
            of_text = _text_rows(text[item, :words], tokens[item, :count], tau_text, check_finite)
            columns[item, :count, :words] = of_text.T
        if features is not None:
            of_image = features[item, :count].float()
            of_image = of_image / _norms("features", of_image, check_finite)
            _write_vision_columns(of_image, tau_vision, alpha / count, columns[item, :count, m : m + count])
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
