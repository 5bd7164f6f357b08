"""The coverage affinity on CUDA: normalised scores straight from the inputs, then the softmax in place.

Two launches for the vision rows and two for the text rows make up the whole of it, for any number of images:

- `scores_kernel` multiplies tiles of rows, adding up the squares of what it reads on the way, so that nothing is
  normalised, converted or copied beforehand. Half-precision inputs go to the tensor cores as they are (their products
  are exact in float32); float32 inputs as three products of TF32, whose error of 4e-6 is smaller than that of one chain
  of IEEE additions, and which take half the time on an H200. The vision scores are symmetric: tiles below the diagonal
  are computed and stored twice.
- `softmax_kernel` turns each row of the affinity into its weights in place, in two passes: the maximum and the sum
  of exponentials, then the result. Rows and columns past an item's lengths become zero.

Everything is stored by columns, which is what the greedy reads, with room for a multiple of 16 rows so that columns
start at aligned addresses.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

OPTIONS = {"num_warps": 8, "num_stages": 3}
"""The compiler's options for both kernels."""

_BLOCK_LEFT = 64
_DEPTH_BYTES = 128
"""Of each row, what is multiplied at a time: a cache line, and for float32 no more than the registers hold."""

SOFTMAX_TILE = {"BLOCK_ROWS": 32, "BLOCK_COLUMNS": 64}


def score_tile(dtype: torch.dtype) -> dict[str, int]:
    """The sizes of a tile of scores but for its columns, for inputs of this dtype."""
    return {"BLOCK_LEFT": _BLOCK_LEFT, "BLOCK_DEPTH": _DEPTH_BYTES // dtype.itemsize}


@triton.jit
def scores_kernel(  # type: ignore[no-untyped-def]
    left,
    right,
    out,
    left_rows,
    right_rows,
    depth,
    left_item,
    left_row,
    right_item,
    right_row,
    out_item,
    out_column,
    tau,
    SYMMETRIC: tl.constexpr,
    BLOCK_LEFT: tl.constexpr,
    BLOCK_RIGHT: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """out[item, l, r] = cos(left[item, l], right[item, r]) / tau; grid (left tiles, right tiles, items)."""
    left_tile, right_tile = tl.program_id(0), tl.program_id(1)
    if SYMMETRIC and left_tile < right_tile:
        return
    item = tl.program_id(2).to(tl.int64)
    left_index = left_tile * BLOCK_LEFT + tl.arange(0, BLOCK_LEFT)
    right_index = right_tile * BLOCK_RIGHT + tl.arange(0, BLOCK_RIGHT)
    left += item * left_item + left_index[:, None].to(tl.int64) * left_row
    right += item * right_item + right_index[:, None].to(tl.int64) * right_row
    left_real, right_real = left_index[:, None] < left_rows, right_index[:, None] < right_rows

    products = tl.zeros([BLOCK_LEFT, BLOCK_RIGHT], tl.float32)
    left_squares = tl.zeros([BLOCK_LEFT], tl.float32)
    right_squares = tl.zeros([BLOCK_RIGHT], tl.float32)
    for start in range(0, depth, BLOCK_DEPTH):
        at = start + tl.arange(0, BLOCK_DEPTH)[None, :]
        a = tl.load(left + at, mask=left_real & (at < depth), other=0.0)
        b = tl.load(right + at, mask=right_real & (at < depth), other=0.0)
        products = tl.dot(a, tl.trans(b), products, input_precision="tf32x3")
        left_squares += tl.sum(a.to(tl.float32) * a.to(tl.float32), axis=1)
        right_squares += tl.sum(b.to(tl.float32) * b.to(tl.float32), axis=1)
    left_norm = tl.maximum(tl.sqrt(left_squares), 1e-8)
    right_norm = tl.maximum(tl.sqrt(right_squares), 1e-8)
    scores = products / (left_norm[:, None] * right_norm[None, :] * tau)

    out += item * out_item
    real = left_real & (right_index[None, :] < right_rows)
    tl.store(out + left_index[:, None].to(tl.int64) * out_column + right_index[None, :], scores, mask=real)
    if SYMMETRIC and left_tile != right_tile:
        mirror = right_real & (left_index[None, :] < left_rows)
        place = out + right_index[:, None].to(tl.int64) * out_column + left_index[None, :]
        tl.store(place, tl.trans(scores), mask=mirror)


@triton.jit
def softmax_kernel(  # type: ignore[no-untyped-def]
    columns,
    words,
    counts,
    n,
    text_rows,
    rows,
    columns_item,
    column_stride,
    alpha,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Softmax, weight and padding of every affinity row in place; grid (row tiles, items).

    Rows before text_rows are text rows and share the weight 1, the others are vision rows and share alpha.
    """
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    item = tl.program_id(1).to(tl.int64)
    word_count, count = tl.load(words + item).to(tl.int32), tl.load(counts + item).to(tl.int32)
    columns += item * columns_item + row[None, :]
    is_text = row < text_rows
    real = tl.where(is_text, row < word_count, row - text_rows < count) & (row < rows)
    share = tl.where(is_text, 1.0 / tl.maximum(word_count, 1), alpha / count)

    highest = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    for start in range(0, count, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)
        mask = (column[:, None] < count) & real[None, :]
        scores = tl.load(columns + column[:, None].to(tl.int64) * column_stride, mask=mask, other=float("-inf"))
        # Rows beyond the item's own have no scores; a maximum of zero keeps NaN out of their exponentials.
        seen = tl.where(real, tl.maximum(highest, tl.max(scores, axis=0)), 0.0)
        total = total * tl.exp(tl.where(real, highest - seen, 0.0)) + tl.sum(tl.exp(scores - seen[None, :]), axis=0)
        highest = seen
    scale = tl.where(real, share / total, 0.0)
    for start in range(0, n, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)
        mask = (column[:, None] < count) & real[None, :]
        place = columns + column[:, None].to(tl.int64) * column_stride
        scores = tl.load(place, mask=mask, other=float("-inf"))
        weights = tl.where(mask, tl.exp(scores - highest[None, :]) * scale[None, :], 0.0)
        tl.store(place, weights, mask=(column[:, None] < n) & (row[None, :] < rows))


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
    room = triton.cdiv(rows, 16) * 16
    columns = torch.empty((batch, n, room), device=tokens.device)[:, :, :rows]
    if batch == 0:
        return columns.mT
    with torch.cuda.device_of(columns):
        if text is not None:
            text = _readable("text", text, text_lengths, check_finite)
            tokens = _readable("tokens", tokens, token_lengths, check_finite)
            if text.dtype != tokens.dtype:
                text, tokens = text.float(), tokens.float()
            _write_scores(tokens, text, columns, tau_text, symmetric=False)
        if features is not None:
            features = _readable("features", features, token_lengths, check_finite)
            _write_scores(features, features, columns[:, :, m:], tau_vision, symmetric=True)
        softmax_kernel[(triton.cdiv(rows, SOFTMAX_TILE["BLOCK_ROWS"]), batch)](
            columns,
            text_lengths,
            token_lengths,
            n,
            m,
            rows,
            columns.stride(0),
            columns.stride(1),
            alpha,
            **SOFTMAX_TILE,
            **OPTIONS,
        )
    return columns.mT


def _readable(name: str, rows: Tensor, lengths: Tensor, check_finite: bool) -> Tensor:
    # Triton's interpreter, which alone sees CPU tensors, multiplies the bits of bfloat16 as if they were integers.
    if rows.dtype == torch.float64 or (rows.dtype == torch.bfloat16 and not rows.is_cuda):
        rows = rows.float()
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    if check_finite:
        real = torch.arange(rows.shape[1], device=rows.device) < lengths[:, None]
        if not bool((rows.isfinite().all(dim=-1) | ~real).all()):
            raise ValueError(f"{name} must be finite, but holds NaN or infinity")
    return rows


def _write_scores(left: Tensor, right: Tensor, out: Tensor, tau: float, *, symmetric: bool) -> None:
    batch, left_rows, depth = left.shape
    right_rows = right.shape[1]
    block_right = _BLOCK_LEFT if symmetric else max(16, min(64, triton.next_power_of_2(right_rows)))
    grid = (triton.cdiv(left_rows, _BLOCK_LEFT), triton.cdiv(right_rows, block_right), batch)
    scores_kernel[grid](
        left,
        right,
        out,
        left_rows,
        right_rows,
        depth,
        left.stride(0),
        left.stride(1),
        right.stride(0),
        right.stride(1),
        out.stride(0),
        out.stride(1),
        tau,
        SYMMETRIC=symmetric,
        BLOCK_RIGHT=block_right,
        **score_tile(left.dtype),
        **OPTIONS,
    )
