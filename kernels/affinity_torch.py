"""The coverage affinity in plain torch, batched, on any device; the other backends' reference."""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.kernels.affinity_inputs import AffinityInputs


def affinity(inputs: AffinityInputs) -> Tensor:
    """(B, m + n, n) float32; see `coverage_affinity`."""
    item_tokens = _real(inputs.tokens, inputs.token_lengths)
    blocks = []
    if inputs.text is not None:
        words = _real(inputs.text, inputs.text_lengths)
        z = _unit("text", inputs.text, words, inputs.check_finite)
        x = _unit("tokens", inputs.tokens, item_tokens, inputs.check_finite)
        rows = _softmax_rows(z, x, words, item_tokens, inputs.tau_text)
        blocks.append(rows / inputs.text_lengths.clamp(min=1)[:, None, None])
    if inputs.features is not None:
        v = _unit("features", inputs.features, item_tokens, inputs.check_finite)
        rows = _softmax_rows(v, v, item_tokens, item_tokens, inputs.tau_vision)
        blocks.append(rows * (inputs.alpha / inputs.token_lengths)[:, None, None])
    return torch.cat(blocks, dim=1)


def _real(padded: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]


def _unit(name: str, rows: Tensor, real: Tensor, check_finite: bool) -> Tensor:
    rows = torch.where(real[..., None], rows.float(), 0.0)
    if check_finite and not bool(rows.isfinite().all()):
        raise ValueError(f"{name} must be finite, but holds NaN or infinity")
    return normalize(rows, dim=-1, eps=1e-8)


def _softmax_rows(rows: Tensor, columns: Tensor, real_rows: Tensor, real_columns: Tensor, tau: float) -> Tensor:
    scores = rows @ columns.mT / tau
    weights = scores.masked_fill(~real_columns[:, None, :], -math.inf).softmax(dim=-1)
    return weights.masked_fill(~real_rows[..., None], 0.0)
