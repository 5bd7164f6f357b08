"""Lazy greedy on the CPU: a column's gain is computed anew only while its last known one is the highest.

Gains never grow as columns are picked, so a stale gain is an upper bound and a fresh one at the top of the heap is
the maximum (Minoux's accelerated greedy, CELF). Four candidates are evaluated together: the four streams keep the
memory busy, which is what the evaluation of one column waits for. Columns must be contiguous, and what
`coverage_affinity` returns is laid out so. Items of a batch are shared out over as many threads as torch uses.
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
"""Licence to vectorise a sum; NaN and infinity keep their meaning."""


def _compiled(fastmath: set[str] | bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def compile_lazily(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            compiled: Callable[..., Any] = numba.njit(nogil=True, cache=True, fastmath=fastmath)(function)
        except RuntimeError:  # numba finds no directory to write its cache to; every process then compiles anew
            compiled = numba.njit(nogil=True, fastmath=fastmath)(function)
        return compiled

    return compile_lazily


@_compiled(_REORDER | {"nnan"})
def _block_gains(a, b, c, d, covered):  # type: ignore[no-untyped-def]
    zero = np.float32(0)
    gain_a = gain_b = gain_c = gain_d = zero
    for i in range(covered.shape[0]):
        have = covered[i]
        gain_a += max(a[i] - have, zero)
        gain_b += max(b[i] - have, zero)
        gain_c += max(c[i] - have, zero)
        gain_d += max(d[i] - have, zero)
    return gain_a, gain_b, gain_c, gain_d


@_compiled()
def _update_gains(columns, four, covered, gains):  # type: ignore[no-untyped-def]
    # Every gain is summed in this one order, so that equal columns get equal gains and no gain grows by rounding.
    a, b, c, d = four
    total_a = total_b = total_c = total_d = 0.0
    for start in range(0, covered.shape[0], 1024):
        block = slice(start, start + 1024)
        part_a, part_b, part_c, part_d = _block_gains(
            columns[a, block], columns[b, block], columns[c, block], columns[d, block], covered[block]
        )
        total_a += part_a
        total_b += part_b
        total_c += part_c
        total_d += part_d
    gains[a], gains[b], gains[c], gains[d] = total_a, total_b, total_c, total_d


@_compiled(_REORDER)
def _is_finite(column):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for i in range(column.shape[0]):
        total += column[i] * np.float32(0)
    return total == 0


@_compiled()
def _sift_down(heap, size, place, gains):  # type: ignore[no-untyped-def]
    item = heap[place]
    gain = gains[item]
    while 2 * place + 1 < size:
        below = 2 * place + 1
        if below + 1 < size:
            left, right = heap[below], heap[below + 1]
            if gains[right] > gains[left] or (gains[right] == gains[left] and right < left):
                below += 1
        child = heap[below]
        if gains[child] < gain or (gains[child] == gain and child > item):
            break
        heap[place] = child
        place = below
    heap[place] = item


@_compiled()
def _select_one(columns, count, allowed, picks, check_finite):  # type: ignore[no-untyped-def]
    n, rows = columns.shape
    covered = np.zeros(rows, np.float32)
    gains = np.zeros(n, np.float64)
    seen_at = np.zeros(n, np.int64)  # the pick before which a gain was computed last
    heap = np.zeros(n + 3, np.int64)  # three more, so that there are always four to evaluate together
    size = 0
    for j in range(0, n, 4):
        _update_gains(columns, (j, min(j + 1, n - 1), min(j + 2, n - 1), min(j + 3, n - 1)), covered, gains)
        for item in range(j, min(j + 4, n)):
            if check_finite and not _is_finite(columns[item]):
                return False
            if allowed[item]:
                heap[size] = item
                size += 1
    for place in range(size // 2 - 1, -1, -1):
        _sift_down(heap, size, place, gains)

    for step in range(count):
        while seen_at[heap[0]] != step:
            four = (heap[0], heap[1], heap[2], heap[3])
            _update_gains(columns, four, covered, gains)
            for item in four:
                seen_at[item] = step
            for place in range(3, -1, -1):
                _sift_down(heap, size, place, gains)
        best = heap[0]
        picks[step] = best
        size -= 1
        heap[0] = heap[size]
        _sift_down(heap, size, 0, gains)
        for i in range(rows):
            covered[i] = max(covered[i], columns[best, i])
    return True


@_compiled()
def _select_share(columns, counts, allowed, picks, check_finite, first, stride):  # type: ignore[no-untyped-def]
    finite = True
    for item in range(first, columns.shape[0], stride):
        finite &= _select_one(columns[item], counts[item], allowed[item], picks[item], check_finite)
    return finite


@cache
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="greedy")


os.register_at_fork(after_in_child=_helpers.cache_clear)  # a child has none of its parent's threads


def select(affinity: Tensor, counts: Tensor, allowed: Tensor, width: int, check_finite: bool) -> Tensor:
    """Pick counts[b] of the allowed columns of each item; see `greedy_max_coverage.Backend`."""
    picks = torch.full((affinity.shape[0], width), -1, dtype=torch.int64)
    columns = affinity.mT.contiguous()
    shared = (columns.numpy(), counts.contiguous().numpy(), allowed.contiguous().numpy(), picks.numpy(), check_finite)
    threads = max(1, min(affinity.shape[0], torch.get_num_threads()))
    rest = [_helpers().submit(_select_share, *shared, first, threads) for first in range(1, threads)]
    finite = _select_share(*shared, 0, threads)
    if not all([finite, *(share.result() for share in rest)]):
        raise ValueError("affinity must be finite, but holds NaN or infinity")
    return picks
