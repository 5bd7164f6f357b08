"""Rows of a running batch, by both ways to keep their keys and values, against recomputing each row."""

import math
import random

import pytest
import torch
from transformers import DynamicCache

from covervlm.server.engines.embedded.kv_batch import KVBatch
from tests.server.engines.stepped import MODEL, batch_of_rows, prefill, recomputed, slots, step


@pytest.mark.parametrize("empty", [batch_of_rows, slots, lambda: slots(spare=0)], ids=["batch", "slots", "bare slots"])
@torch.inference_mode()
def test_any_order_of_joining_leaving_and_stepping_equals_recomputing_each_row(empty):
    rng = random.Random(3)
    batch, rows = empty(), []
    for _ in range(120):
        action = rng.random()
        if action < 0.25 or not rows:
            new = [[rng.randrange(40) for _ in range(rng.randint(1, 90))] for _ in range(rng.randint(1, 3))]
            repeats = [rng.randint(0, 2) for _ in new]
            prefill(batch, new, repeats)
            rows += [list(s) for s, count in zip(new, repeats, strict=True) for _ in range(count)]
        elif action < 0.45:
            stay = [i for i in range(len(rows)) if rng.random() < 0.7]
            batch.keep(stay)
            rows = [rows[i] for i in stay]
        else:
            tokens = [rng.randrange(40) for _ in rows]
            for row, token in zip(rows, tokens, strict=True):
                row.append(token)
            for row, hidden in zip(rows, step(batch, tokens), strict=True):
                torch.testing.assert_close(hidden, recomputed(row), atol=2e-5, rtol=1e-4)
        assert batch.lengths == [len(row) for row in rows]
        if isinstance(batch, KVBatch):
            assert batch.width == max(map(len, rows), default=0)
        for row in random.Random(len(rows)).sample(range(len(rows)), min(1, len(rows))):
            expected = DynamicCache()
            with torch.inference_mode():
                MODEL(input_ids=torch.tensor([rows[row]]), past_key_values=expected, use_cache=True)
            for found, layer in zip(batch.row(row), expected.layers, strict=True):
                torch.testing.assert_close(found, (layer.keys, layer.values), atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_columns_that_no_row_uses_are_cut():
    batch = batch_of_rows()
    prefill(batch, [[1] * 200, [2] * 5], [1, 1])
    assert batch.width == 200
    batch.keep([1])
    assert batch.width == 5


def test_rows_that_join_and_leave_move_no_others():
    batch = batch_of_rows()
    prefill(batch, [[1] * 90, [2] * 7, [3]], [1, 1, 1])
    first = batch.row(0)
    batch.keep([0, 1])
    buffers = [side.data_ptr() for layer in batch._buffers for side in layer]
    for _ in range(20):
        prefill(batch, [[3] * 60], [1])
        step(batch, [4] * 3)
        batch.keep([0, 1])
    assert [side.data_ptr() for layer in batch._buffers for side in layer] == buffers
    for (keys, values), (now, values_now) in zip(first, batch.row(0), strict=True):
        assert torch.equal(now[:, :, :90], keys)
        assert torch.equal(values_now[:, :, :90], values)


@torch.inference_mode()
def test_what_a_row_left_behind_poisons_no_later_one():
    batch = batch_of_rows()
    prefill(batch, [[1, 2, 3], [4] * 50], [1, 1])
    for keys, values in batch._columns(batch._places[1], 50):
        keys.fill_(math.nan)
        values.fill_(math.nan)
    batch.keep([0])
    prefill(batch, [[5, 6]], [1])
    torch.testing.assert_close(step(batch, [7, 8])[1], recomputed([5, 6, 8]), atol=2e-5, rtol=1e-4)
    batch.keep([1])
    prefill(batch, [[9] * 40], [1])
    torch.testing.assert_close(step(batch, [7, 8])[0], recomputed([5, 6, 8, 7]), atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_most_rows_that_leave_take_their_buffers_along():
    batch = batch_of_rows()
    prefill(batch, [[1] * 9], [20])
    used = batch._buffers[0][0].data_ptr()
    batch.keep(list(range(6)))
    assert batch._buffers[0][0].data_ptr() == used
    batch.keep([3, 5])
    assert batch._buffers[0][0].data_ptr() != used
    torch.testing.assert_close(step(batch, [7, 8])[1], recomputed([1] * 9 + [8]), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("empty", [batch_of_rows, slots])
def test_an_emptied_batch_starts_afresh(empty):
    batch = empty()
    prefill(batch, [[1, 2, 3]], [1])
    batch.keep([])
    assert len(batch) == 0
    prefill(batch, [[4, 5]], [2])
    assert batch.lengths == [2, 2]
