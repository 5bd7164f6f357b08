"""Greedy maximum coverage: the columns that together cover the rows best, one pick after the other."""

import operator
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from covervlm.kernels.backends import load_backend


class Backend(Protocol):
    """One way to run the greedy; the edge rules are settled before it is called."""

    def select(
        self,
        affinity: Tensor,
        counts: Tensor,
        allowed: Tensor,
        width: int,
        check_finite: bool,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Pick counts[b] columns of each item, highest gain first and the lowest index on ties.

        affinity: (B, rows, n) float32. counts: (B,) int64, at most the number of allowed columns and at most width.
        allowed: (B, n) bool, contiguous. weights: (B, n) float32, contiguous, by which gains count; None for 1.
        Returns (B, width) int64, -1 past counts[b].
        """
        ...


@torch.no_grad()
def greedy_max_coverage(
    affinity: Tensor,
    k: int | Sequence[int] | Tensor,
    *,
    allowed: Tensor | None = None,
    columns: Sequence[int] | Tensor | None = None,
    weights: Tensor | None = None,
    backend: str = "auto",
    check_finite: bool = True,
) -> Tensor:
    """Pick k columns that greedily maximise sum_i max_j affinity[i, j], as MMTok (arXiv 2508.18264) defines it.

    affinity: (rows, n) or (B, rows, n), any float dtype, computed on in float32; rows of zeros change nothing.
    k: how many to pick, or for a batch one count per item.
    allowed: (n,) or (B, n) bool, False for columns that must not be picked.
    columns: (B,) real columns of each item of a batch that is padded to a common n; padding is never picked.
    weights: (n,) or (B, n), at least 0, by which each column's gain counts in the choice; None for all alike.
    backend: "torch", the plain loop; "numba", lazy on the CPU; "triton", one launch on CUDA; "auto", by the device.
    check_finite: whether to look for NaN and infinity; without, no backend fails on them, but picks mean nothing.

    Returns int64 indices in pick order, the lowest index on ties: (k',) for one matrix, (B, max k) padded with -1
    for a batch. n <= k picks every column and, like a mask that allows none, ignores `allowed`; with fewer allowed
    than k, all of those are picked. Raises ValueError naming the argument that is wrong.

    On CUDA, a batch with one k for all items, no `columns` and check_finite=False never waits for the device and may
    be captured in a graph.
    """
    _check_affinity(affinity)
    single = affinity.dim() == 2
    if single and columns is not None:
        raise ValueError("columns belongs to a batch; slice a single affinity instead")
    matrices = (affinity[None] if single else affinity).float()
    batch, _, n = matrices.shape
    device = matrices.device

    wanted, most = _counts("k", k, batch, 0, None, device)
    real = None if columns is None else _counts("columns", columns, batch, 1, n, device)[0]
    width = min(most, n) if batch else 0
    if real is not None:
        wanted = torch.minimum(wanted, real)
    elif most > n:
        wanted = wanted.clamp(max=n)
    if real is None:
        mask = torch.ones(batch, n, dtype=torch.bool, device=device)
    else:
        mask = torch.arange(n, device=device) < real[:, None]
    if allowed is not None:
        permitted = mask & _mask(allowed, affinity)
        left = permitted.sum(dim=1)
        heeded = (left > 0) & (wanted < (n if real is None else real))
        mask = torch.where(heeded[:, None], permitted, mask)
        wanted = torch.where(heeded, torch.minimum(wanted, left), wanted)

    implementation: Backend = load_backend("greedy", backend, device)
    by = None if weights is None else _weights(weights, affinity)
    picks = implementation.select(matrices, wanted, mask, width, check_finite, by)
    if not single:
        return picks
    return picks[0] if allowed is None else picks[0, : int(wanted[0])]


def _check_affinity(affinity: Tensor) -> None:
    if not isinstance(affinity, Tensor) or not affinity.is_floating_point():
        raise ValueError("affinity must be a tensor of floating-point numbers")
    if affinity.dim() not in (2, 3):
        raise ValueError(f"affinity must be (rows, n) or (B, rows, n), got shape {tuple(affinity.shape)}")
    if 0 in affinity.shape[-2:]:
        raise ValueError(f"affinity must have rows and columns, got shape {tuple(affinity.shape)}")


def _counts(
    name: str, value: int | Sequence[int] | Tensor, batch: int, least: int, most: int | None, device: torch.device
) -> tuple[Tensor, int]:
    """One count per item on the device, and the largest of them."""
    expected = f"{name} must be an integer or {batch} integers"
    if not isinstance(value, Tensor) and hasattr(value, "__index__"):
        largest = smallest = operator.index(value)
        counts = torch.full((batch,), largest, dtype=torch.int64, device=device)
    else:
        try:
            counts = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{expected}, got {value!r}") from None
        if counts.dim() == 0:
            counts = counts.expand(batch)
        if counts.shape != (batch,) or (batch and (counts.is_floating_point() or counts.dtype == torch.bool)):
            raise ValueError(f"{expected}, got {value!r}")
        largest, smallest = (int(counts.max()), int(counts.min())) if batch else (0, least)
        counts = counts.to(device=device, dtype=torch.int64)
    if isinstance(value, bool) or smallest < least or (most is not None and largest > most):
        bounds = f"an integer >= {least}" if most is None else f"in [{least}, {most}]"
        raise ValueError(f"{name} must be {bounds}, got {value!r}")
    return counts, largest


def _mask(allowed: Tensor, affinity: Tensor) -> Tensor:
    shape = affinity.shape[:-2] + affinity.shape[-1:]
    if not isinstance(allowed, Tensor) or allowed.dtype != torch.bool or allowed.shape != shape:
        got = f"{allowed.dtype} of shape {tuple(allowed.shape)}" if isinstance(allowed, Tensor) else repr(allowed)
        raise ValueError(f"allowed must be bool of shape {tuple(shape)}, got {got}")
    return allowed.to(affinity.device).reshape(-1, affinity.shape[-1])


def _weights(weights: Tensor, affinity: Tensor) -> Tensor:
    shape = affinity.shape[:-2] + affinity.shape[-1:]
    if not isinstance(weights, Tensor) or not weights.is_floating_point() or weights.shape != shape:
        got = f"{weights.dtype} of shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else repr(weights)
        raise ValueError(f"weights must be floating-point numbers of shape {tuple(shape)}, got {got}")
    return weights.to(affinity.device, torch.float32).reshape(-1, affinity.shape[-1]).contiguous()
