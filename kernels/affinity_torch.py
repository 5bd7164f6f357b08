"""The coverage affinity in plain torch, batched, on any device; the other backends' reference."""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize


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
    """See `coverage_affinity.Backend`."""
    item_tokens = _real(tokens, token_lengths)
    blocks = []
    if text is not None:
        words = _real(text, text_lengths)
        z = _unit("text", text, words, check_finite)
        x = _unit("tokens", tokens, item_tokens, check_finite)
        rows = _softmax_rows(z, x, words, item_tokens, tau_text)
        blocks.append(rows / text_lengths.clamp(min=1)[:, None, None])
    if features is not None:
        v = _unit("features", features, item_tokens, check_finite)
        rows = _softmax_rows(v, v, item_tokens, item_tokens, tau_vision)
        blocks.append(rows * (alpha / token_lengths)[:, None, None])
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
