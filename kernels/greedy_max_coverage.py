"""Greedy maximum coverage: the columns that together cover the rows best, one pick after the other."""

import operator
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol

import torch
from torch import Tensor

_BACKENDS = {
    "torch": "covervlm.kernels.greedy_torch",
    "numba": "covervlm.kernels.greedy_numba",
}


class Backend(Protocol):
    """One way to run the greedy; the edge rules are settled before it is called."""

    def select(self, affinity: Tensor, counts: Tensor, allowed: Tensor, width: int, check_finite: bool) -> Tensor:
        """Pick counts[b] columns of each item, highest gain first and the lowest index on ties.

        affinity: (B, rows, n) float32. counts: (B,) int64, at most the number of allowed columns and at most width.
        allowed: (B, n) bool. Returns (B, width) int64, -1 past counts[b].
        """
        ...


def greedy_max_coverage(
    affinity: Tensor,
    k: int | Sequence[int] | Tensor,
    *,
    allowed: Tensor | None = None,
    columns: Sequence[int] | Tensor | None = None,
    backend: str = "auto",
    check_finite: bool = True,
) -> Tensor:
    """Pick k columns that greedily maximise sum_i max_j affinity[i, j], as MMTok (arXiv 2508.18264) defines it.

    affinity: (rows, n) or (B, rows, n), any float dtype, computed on in float32; rows of zeros change nothing.
    k: how many to pick, or for a batch one count per item.
    allowed: (n,) or (B, n) bool, False for columns that must not be picked.
    columns: (B,) real columns of each item of a batch that is padded to a common n; padding is never picked.
    backend: "auto", "torch", "numba" or "triton".
    check_finite: whether to look for NaN and infinity; on CUDA that waits for the device, so leave it out of graphs.

    Returns int64 indices in pick order, the lowest index on ties: (k',) for one matrix, (B, max k) padded with -1
    for a batch. n <= k picks every column and, like a mask that allows none, ignores `allowed`; with fewer allowed
    than k, all of those are picked. Raises ValueError naming the argument that is wrong.
    """
    if not isinstance(affinity, Tensor) or not affinity.is_floating_point():
        raise ValueError("affinity must be a tensor of floating-point numbers")
    if affinity.dim() not in (2, 3):
        raise ValueError(f"affinity must be (rows, n) or (B, rows, n), got shape {tuple(affinity.shape)}")
    if 0 in affinity.shape[-2:]:
        raise ValueError(f"affinity must have rows and columns, got shape {tuple(affinity.shape)}")
    single = affinity.dim() == 2
    if single and columns is not None:
        raise ValueError("columns belongs to a batch; slice a single affinity instead")
    matrices = (affinity[None] if single else affinity).float()
    batch, _, n = matrices.shape
    device = matrices.device

    wanted = _integers("k", k, batch, 0, None, single)
    real = _integers("columns", n if columns is None else columns, batch, 1, n, False)
    width = min(int(wanted.max()), n) if batch else 0
    wanted, real = wanted.to(device), real.to(device)
    mask = torch.arange(n, device=device) < real[:, None]
    if allowed is not None:
        permitted = mask & _mask(allowed, affinity)
        heeded = permitted.any(dim=1) & (wanted < real)
        mask = torch.where(heeded[:, None], permitted, mask)
    counts = torch.minimum(wanted, mask.sum(dim=1))

    picks = _load(backend, device).select(matrices, counts, mask, width, check_finite)
    return picks[0, : int(counts[0])] if single else picks


def _load(name: str, device: torch.device) -> Backend:
    if name == "auto":
        name = "numba" if device.type == "cpu" else "torch"
    if name not in _BACKENDS:
        raise ValueError(f"backend must be auto or one of {', '.join(_BACKENDS)}, got {name!r}")
    backend: Backend = import_module(_BACKENDS[name])
    return backend


def _integers(
    name: str, value: int | Sequence[int] | Tensor, batch: int, least: int, most: int | None, single: bool
) -> Tensor:
    counts = torch.as_tensor(value) if not hasattr(value, "__index__") or isinstance(value, Tensor) else None
    if counts is None:
        counts = torch.full((batch,), operator.index(value))  # type: ignore[arg-type]
    elif counts.dim() == 0:
        counts = counts.expand(batch)
    if counts.dtype.is_floating_point or counts.dtype == torch.bool or counts.shape != (batch,):
        expected = "an integer" if single else f"an integer or {batch} integers"
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    if batch and (int(counts.min()) < least or (most is not None and int(counts.max()) > most)):
        bounds = f">= {least}" if most is None else f"in [{least}, {most}]"
        raise ValueError(f"{name} must be {bounds}, got {value!r}")
    return counts.to(torch.int64)


def _mask(allowed: Tensor, affinity: Tensor) -> Tensor:
    shape = affinity.shape[:-2] + affinity.shape[-1:]
    if not isinstance(allowed, Tensor) or allowed.dtype != torch.bool or allowed.shape != shape:
        got = f"{allowed.dtype} of shape {tuple(allowed.shape)}" if isinstance(allowed, Tensor) else repr(allowed)
        raise ValueError(f"allowed must be bool of shape {tuple(shape)}, got {got}")
    return allowed.to(affinity.device).reshape(-1, affinity.shape[-1])
