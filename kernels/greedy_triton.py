"""Lazy greedy on CUDA: one launch picks for the whole batch, nothing waits for the host.

An item's columns are divided among programs. A program keeps an upper bound of every column's gain in registers and
evaluates the group around its best bound, 16 columns or so as one tile, until its best bound is fresh. Programs of one
item then tell each other their best column through a board in global memory, one int64 each, and each of them applies
the winner to its own copy of the row coverage. Programs that wait for one another must be on the chip together, so the
launch is cooperative and never larger than what the device is certain to hold; items that do not fit that way get fewer
programs, in the end one each, and then none waits.

Cost model. A pick is a chain of dependent steps, so time is about

    picks * (tiles per pick * t_tile + t_exchange),

with t_tile the time to read one tile of at most 64 KiB from L2 and sum it, and t_exchange one round over the board
(none for one program). Counted by the kernel itself (`launch(count=True)`) on the golden cases, interpreted:

    (n, k)        one program per item                       36 programs per item
    (576, 32)     36 tiles for the first pick, then 7.5      -
    (576, 64)     36 tiles for the first pick, then 4.5      1 tile per program and pick
    (576, 192)    36 tiles for the first pick, then 2.7      -

Evaluating single columns, one per step, would take about 1,200 dependent steps for (576, 64); this takes 321 with one
program and 64 with many. Hence the rule of `plan`: as many programs per item as the device holds for the whole batch,
since one tile and one exchange per pick are quicker than several tiles in a row; full batches fall back to one program.
On an H200 a pick takes 3 to 4 microseconds (graphs of 64 picks against graphs of 32), with five items hardly more, and
10 to 12 from 2,880 tokens. Launching takes 0.2 ms beside it (docs/gpu.md).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_GROUP_ELEMENTS = 16384
"""Matrix elements that one evaluation reads at most: 64 KiB, a third of an SM's L1."""

_BLOCK_ELEMENTS = 4096
"""Of these, the elements that are in flight as one tile: 16 per thread."""

_RESIDENT = 2
"""Programs of 256 threads that fit an SM whatever else is compiled in: 2 · 256 · 128 registers are all it has."""

_OPTIONS: dict[str, int | bool] = {"num_warps": 8, "maxnreg": 128}

_LAST: tl.constexpr = tl.constexpr(0x3FFFFFFF)
_UNKNOWN: tl.constexpr = tl.constexpr(0x7F800000)


@triton.jit
def greedy_kernel(  # type: ignore[no-untyped-def]
    columns,
    allowed,
    counts,
    picks,
    covered,
    messages,
    evaluations,
    weights,
    n,
    rows,
    width,
    item_stride,
    column_stride,
    programs,
    GROUPS: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    LANES: tl.constexpr,
    COUNT: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    """Pick counts[item] columns of every item; grid (programs, items), each program owning GROUPS * TOGETHER columns.

    A column is known by one int64 key: the bits of its gain's upper bound, then the complement of its index, then
    whether the bound is fresh. The largest key is thus the best column, and -1 marks one that must not be picked.
    """
    program = tl.program_id(0)
    item = tl.program_id(1).to(tl.int64)
    columns += item * item_stride
    covered += (item * programs + program) * rows
    messages += item * width * programs
    lanes = tl.arange(0, LANES)
    block = tl.arange(0, BLOCK)

    first = program * (GROUPS * TOGETHER)
    groups = tl.arange(0, GROUPS)[:, None]
    index = first + groups * TOGETHER + tl.arange(0, TOGETHER)[None, :]
    free = tl.load(allowed + item * n + index, mask=index < n, other=0) != 0
    keys = tl.where(free, (tl.full(index.shape, _UNKNOWN, tl.int64) << 32) | ((index ^ _LAST).to(tl.int64) << 1), -1)

    for step in range(tl.load(counts + item)):
        top = tl.max(keys)
        evaluated = 0
        while (top > 0) & (top & 1 == 0):
            group = (((top >> 1 & _LAST) ^ _LAST).to(tl.int32) - first) // TOGETHER
            column = first + group * TOGETHER + tl.arange(0, TOGETHER)
            excess = tl.full([TOGETHER, BLOCK], 0.0, tl.float32)
            for part in tl.static_range(BLOCKS):
                row = part * BLOCK + block
                have = tl.load(covered + row, mask=(row < rows) & (step > 0), other=0.0)
                value = tl.load(
                    columns + column[:, None].to(tl.int64) * column_stride + row[None, :],
                    mask=(column[:, None] < n) & (row[None, :] < rows),
                    other=0.0,
                )
                excess += tl.maximum(value - have[None, :], 0.0)
            gains = tl.sum(excess, axis=1)
            if WEIGHTED:
                gains *= tl.load(weights + item * n + column, mask=column < n, other=0.0)
            fresh = (gains.to(tl.int32, bitcast=True).to(tl.int64) << 32) | ((column ^ _LAST).to(tl.int64) << 1) | 1
            keys = tl.where((groups == group) & (keys >= 0), fresh[None, :], keys)
            top = tl.max(keys)
            evaluated += 1

        if LANES > 1:
            board = messages + step * programs
            tl.atomic_xchg(board + program, tl.maximum(top, 1), sem="relaxed")
            heard = tl.min(tl.zeros([LANES], tl.int64))
            while heard == 0:
                said = tl.load(board + lanes, mask=lanes < programs, other=1, volatile=True)
                heard = tl.min(said)
                top = tl.max(said)
        best = ((top >> 1 & _LAST) ^ _LAST).to(tl.int32)
        if program == 0:
            tl.store(picks + item * width + step, best.to(tl.int64))
        keys = tl.where(index == best, -1, keys & -2)
        for part in tl.static_range(BLOCKS):
            row = part * BLOCK + block
            have = tl.load(covered + row, mask=(row < rows) & (step > 0), other=0.0)
            value = tl.load(columns + best.to(tl.int64) * column_stride + row, mask=row < rows, other=0.0)
            tl.store(covered + row, tl.maximum(have, value), mask=row < rows)
        tl.debug_barrier()
        if COUNT:
            tl.store(evaluations + (item * width + step) * programs + program, evaluated)


@dataclass(frozen=True)
class Plan:
    """How one launch is cut up: `programs` per item, each with `groups` groups of `together` columns.

    The rows of a group are read in `blocks` blocks of `block`; `lanes` is 1 where one program has an item to itself.
    """

    programs: int
    groups: int
    together: int
    block: int
    blocks: int
    lanes: int

    @property
    def constants(self) -> dict[str, int]:
        """The kernel's compile-time arguments."""
        return {
            "GROUPS": self.groups,
            "TOGETHER": self.together,
            "BLOCK": self.block,
            "BLOCKS": self.blocks,
            "LANES": self.lanes,
        }

    @property
    def options(self) -> dict[str, int | bool]:
        """The compiler's options; programs that wait for one another must all be on the chip."""
        return {**_OPTIONS, "launch_cooperative_grid": self.programs > 1}


def plan(n: int, rows: int, items: int, capacity: int) -> Plan:
    """Spread items of (rows, n) over at most `capacity` programs that run at the same time."""
    together = max(1, min(64, _power_of_two_below(_GROUP_ELEMENTS // rows)))
    block = min(_BLOCK_ELEMENTS // together, triton.next_power_of_2(rows))
    all_groups = triton.cdiv(n, together)
    wanted = max(1, min(all_groups, capacity // items))
    groups = triton.next_power_of_2(triton.cdiv(all_groups, wanted))
    programs = triton.cdiv(all_groups, groups)
    lanes = triton.next_power_of_2(programs)
    return Plan(programs, groups, together, block, triton.cdiv(rows, block), lanes)


def select(
    affinity: Tensor, counts: Tensor, allowed: Tensor, width: int, check_finite: bool, weights: Tensor | None = None
) -> Tensor:
    """Pick counts[b] of the allowed columns of each item; see `greedy_max_coverage.Backend`."""
    if check_finite and not bool(affinity.isfinite().all()):
        raise ValueError("affinity must be finite, but holds NaN or infinity")
    return launch(affinity, counts, allowed, width, weights=weights)[0]


def launch(
    affinity: Tensor,
    counts: Tensor,
    allowed: Tensor,
    width: int,
    *,
    weights: Tensor | None = None,
    capacity: int | None = None,
    count: bool = False,
) -> tuple[Tensor, Tensor]:
    """One launch over the whole batch: the picks (B, width) and the groups evaluated (B, width, programs) if counted.

    capacity: programs that may run at the same time, by default what the device surely holds.
    """
    batch, rows, n = affinity.shape
    columns = affinity.mT
    if columns.stride(2) != 1:
        columns = columns.contiguous()
    device = columns.device
    chosen = plan(n, rows, max(1, batch), _capacity(device) if capacity is None else capacity)
    picks = torch.full((batch, width), -1, dtype=torch.int64, device=device)
    evaluations = torch.zeros((batch, width, chosen.programs) if count else 1, dtype=torch.int64, device=device)
    if batch and width:
        covered = torch.empty((batch, chosen.programs, rows), device=device)
        messages = torch.zeros(
            (batch, width, chosen.programs) if chosen.programs > 1 else 1, dtype=torch.int64, device=device
        )
        with torch.cuda.device_of(columns):
            greedy_kernel[(chosen.programs, batch)](
                columns,
                allowed,
                counts,
                picks,
                covered,
                messages,
                evaluations,
                columns if weights is None else weights,
                n,
                rows,
                width,
                columns.stride(0),
                columns.stride(1),
                chosen.programs,
                COUNT=count,
                WEIGHTED=weights is not None,
                **chosen.constants,
                **chosen.options,
            )
    return picks, evaluations


def _capacity(device: torch.device) -> int:
    if device.type != "cuda":
        return 1  # the interpreter runs one program after the other, so none may wait for another
    return _RESIDENT * torch.cuda.get_device_properties(device).multi_processor_count


def _power_of_two_below(value: int) -> int:
    return 1 << (value.bit_length() - 1) if value else 0
