"""The coverage affinity of MMTok: how well each vision token stands for the question's words and for the image."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from covervlm.kernels.backends import load_backend

Lengths = Sequence[int] | Tensor


class Backend(Protocol):
    """One way to compute the affinity; its arguments are checked and batched before it is called."""

    def affinity(
        self,
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
        """The affinity (B, m + n, n) in float32, zero past the lengths of each item.

        text: (B, m, d) with m > 0, or None. tokens: (B, n, d). features: (B, n, d_v), or None.
        text_lengths, token_lengths: (B,) int64 on the tensors' device.
        """
        ...


@torch.no_grad()
def coverage_affinity(
    text: Tensor | None,
    tokens: Tensor,
    features: Tensor | None,
    *,
    tau_text: float = 0.02,
    tau_vision: float = 0.2,
    alpha: float = 0.5,
    text_lengths: Lengths | None = None,
    token_lengths: Lengths | None = None,
    backend: str = "auto",
    check_finite: bool = True,
) -> Tensor:
    """Stack text rows softmax(Z Xᵀ / tau_text) / m on vision rows alpha · softmax(V Vᵀ / tau_vision) / n.

    text: Z (m, d) or (B, m, d), input embeddings of the question's words; None or m = 0 leaves the text rows out.
    tokens: X (n, d) or (B, n, d), projector outputs.
    features: V (n, d_v) or (B, n, d_v), vision features before the projector; None leaves the vision rows out.
    text_lengths, token_lengths: for a batch padded to common m and n, the real counts of each item, (B,) integers.
        Rows and columns past them are zero in the result, and what the padding holds does not matter.
    backend: "torch", the plain formula; "cpu", by symmetry; "triton", fused on CUDA; "auto", by the device.
    check_finite: whether to look for NaN and infinity; on CUDA that waits for the device, so leave it out of graphs.

    Any float dtype goes in and rows are L2-normalised (norm clamped at 1e-8); the arithmetic and the result are
    float32: (m + n, n) or (B, m + n, n), strided so that columns are contiguous. Raises ValueError naming the
    argument that is wrong. MMTok (arXiv 2508.18264), section 3.
    """
    given = {"text": text, "tokens": tokens, "features": features}
    _check_tensors({name: part for name, part in given.items() if part is not None})
    for name, tau in (("tau_text", tau_text), ("tau_vision", tau_vision)):
        if not (math.isfinite(tau) and tau > 0):
            raise ValueError(f"{name} must be a positive number, got {tau}")
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"alpha must be a number >= 0, got {alpha}")
    single = tokens.dim() == 2
    for name, lengths in (("text_lengths", text_lengths), ("token_lengths", token_lengths)):
        if single and lengths is not None:
            raise ValueError(f"{name} belongs to a batch, but tokens have shape {tuple(tokens.shape)}")
    if text is not None and text.shape[-2] == 0:
        text = None

    def batched(part: Tensor | None) -> Tensor | None:
        return part[None] if single and part is not None else part

    x, z, v = tokens[None] if single else tokens, batched(text), batched(features)
    batch, n, _ = x.shape
    implementation: Backend = load_backend("affinity", backend, x.device)
    with torch.autocast(x.device.type, enabled=False):
        result = implementation.affinity(
            z,
            x,
            v,
            _counts("text_lengths", text_lengths, batch, 0, 0 if z is None else z.shape[1], x.device),
            _counts("token_lengths", token_lengths, batch, 1, n, x.device),
            tau_text=tau_text,
            tau_vision=tau_vision,
            alpha=alpha,
            check_finite=check_finite,
        )
    return result[0] if single else result


def _check_tensors(given: dict[str, Tensor]) -> None:
    for name, part in given.items():
        if not isinstance(part, Tensor) or not part.is_floating_point():
            raise ValueError(f"{name} must be a tensor of floating-point numbers")
        if part.dim() not in (2, 3):
            raise ValueError(f"{name} must be (rows, d) or (B, rows, d), got shape {tuple(part.shape)}")
    tokens = given["tokens"]
    for name, part in given.items():
        if part.shape[:-2] != tokens.shape[:-2]:
            raise ValueError(f"{name} of shape {tuple(part.shape)} and tokens of {tuple(tokens.shape)} differ in batch")
        if part.device != tokens.device:
            raise ValueError(f"{name} is on {part.device} but tokens are on {tokens.device}")
    if tokens.shape[-2] == 0:
        raise ValueError("tokens must have at least one row")
    if "text" in given and given["text"].shape[-1] != tokens.shape[-1]:
        raise ValueError(f"text has width {given['text'].shape[-1]} but tokens have {tokens.shape[-1]}")
    if "features" in given and given["features"].shape[-2] != tokens.shape[-2]:
        raise ValueError(f"features have {given['features'].shape[-2]} rows but tokens have {tokens.shape[-2]}")
    if "features" not in given and ("text" not in given or given["text"].shape[-2] == 0):
        raise ValueError("text must have at least one row where features is None")


def _counts(name: str, lengths: Lengths | None, batch: int, least: int, most: int, device: torch.device) -> Tensor:
    if lengths is None:
        return torch.full((batch,), most, device=device)
    try:
        counts = torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} must be {batch} integers, got {lengths!r}") from None
    if counts.shape != (batch,) or counts.is_floating_point() or counts.dtype == torch.bool:
        raise ValueError(f"{name} must be {batch} integers, got {lengths!r}")
    if not counts.is_cuda and batch and not (least <= int(counts.min()) and int(counts.max()) <= most):
        raise ValueError(f"{name} must lie in [{least}, {most}], got {lengths!r}")
    return counts.to(device=device, dtype=torch.int64)
