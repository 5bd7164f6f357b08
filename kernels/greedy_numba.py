"""Lazy greedy on the CPU: a column's gain is computed again only while its last known one could still win.

Gains never grow as columns are picked, so an old gain is an upper bound (Minoux's accelerated greedy, CELF). Each pick
first evaluates the column that came second in the previous one, which is usually still near the top, and then, in
memory order, those whose bound reaches the best gain found so far. A heap of bounds would save hardly any evaluations,
and maintaining it costs as much as they do. Columns must be contiguous, which is how `coverage_affinity` lays out its
result. Items of a batch are spread over as many threads as torch uses.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

_REORDER = {"reassoc", "nsz", "contract"}
"""Lets the compiler vectorise a sum; NaN and infinity keep their meaning."""


def _compiled(fastmath: set[str] | bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def compile_lazily(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            compiled: Callable[..., Any] = numba.njit(nogil=True, cache=True, fastmath=fastmath)(function)
        except RuntimeError:  # numba finds no writable directory for its cache: every process compiles again
            compiled = numba.njit(nogil=True, fastmath=fastmath)(function)
        return compiled

    return compile_lazily


@_compiled(_REORDER | {"nnan"})
def _gain(column, covered):  # type: ignore[no-untyped-def]
    # All gains are summed in the same order, so that equal columns get equal gains and rounding makes no gain grow.
    total = np.float32(0)
    for i in range(covered.shape[0]):
        total += max(column[i] - covered[i], np.float32(0))
    return total


@_compiled(_REORDER)
def _is_finite(column):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for i in range(column.shape[0]):
        total += column[i] * np.float32(0)
    return total == 0


@_compiled()
def _highest(gains):  # type: ignore[no-untyped-def]
    best = 0
    for j in range(1, gains.shape[0]):
        if gains[j] > gains[best]:
            best = j
    return best


@_compiled()
def _select_one(columns, count, allowed, picks, check_finite, weights):  # type: ignore[no-untyped-def]
    n, rows = columns.shape
    covered = np.zeros(rows, np.float32)
    gains = np.full(n, np.float32(-1))  # less than any gain: must not be picked
    for j in range(n):
        if check_finite and not _is_finite(columns[j]):
            return False
        if allowed[j]:
            gains[j] = weights[j] * _gain(columns[j], covered)

    second = -1
    for step in range(count):
        best = second if second >= 0 else _highest(gains)
        second = -1
        if step > 0:
            first = best
            most = gains[first] = weights[first] * _gain(columns[first], covered)
            for j in range(n):
                # An equal bound can win only from a lower index.
                if gains[j] >= most and j != first and (gains[j] > most or j < best):
                    gain = gains[j] = weights[j] * _gain(columns[j], covered)
                    if gain > most or (gain == most and j < best):
                        best, most, second = j, gain, best
                    elif second < 0 or gain > gains[second]:
                        second = j
        picks[step] = best
        gains[best] = -1
        column = columns[best]
        for i in range(rows):
            covered[i] = max(covered[i], column[i])
    return True


@_compiled()
def _select_share(columns, counts, allowed, picks, check_finite, weights, first, stride):  # type: ignore[no-untyped-def]
    finite = True
    for item in range(first, columns.shape[0], stride):
        finite &= _select_one(columns[item], counts[item], allowed[item], picks[item], check_finite, weights[item])
    return finite


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="greedy")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads


def select(
    affinity: Tensor, counts: Tensor, allowed: Tensor, width: int, check_finite: bool, weights: Tensor | None = None
) -> Tensor:
    """Pick counts[b] of the allowed columns of each item; see `greedy_max_coverage.Backend`."""
    picks = torch.full((affinity.shape[0], width), -1, dtype=torch.int64)
    columns = affinity.mT.contiguous()
    weighed = torch.ones(allowed.shape) if weights is None else weights
    given = (counts.contiguous().numpy(), allowed.contiguous().numpy(), picks.numpy(), check_finite, weighed.numpy())
    shared = (columns.numpy(), *given)
    threads = max(1, min(affinity.shape[0], torch.get_num_threads()))
    rest = [_pool().submit(_select_share, *shared, first, threads) for first in range(1, threads)]
    finite = _select_share(*shared, 0, threads)
    if not all([finite, *(share.result() for share in rest)]):
        raise ValueError("affinity must be finite, but holds NaN or infinity")
    return picks
