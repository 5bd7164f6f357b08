"""Slots that stay where they are: which steps are captured and replayed, and what memory is held."""

import random

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config

from covervlm.server.engines.embedded.kv_slots import KVSlots
from covervlm.server.engines.embedded.model_runner import reads_everything
from tests.server.engines.stepped import Replayed, hidden_states, prefill, recomputed, slots, step

RNG = random.Random(5)


def sentence(length: int) -> list[int]:
    return [RNG.randrange(40) for _ in range(length)]


def test_steps_of_one_size_are_captured_once_and_replayed_while_rows_come_and_go():
    graphs = Replayed()
    batch, rows = KVSlots(hidden_states, graphs, 2**20), []
    prefill(batch, new := [sentence(20), sentence(9)], [1, 1])
    rows += new
    for number in range(30):
        if number % 7 == 3:  # one leaves, another takes its place
            batch.keep([1])
            prefill(batch, [new := sentence(3 + number)], [1])
            rows = [rows[1], new]
        tokens = sentence(2)
        for row, token in zip(rows, tokens, strict=True):
            row.append(token)
        for row, hidden in zip(rows, step(batch, tokens), strict=True):
            torch.testing.assert_close(hidden, recomputed(row), atol=2e-5, rtol=1e-4)
    assert (graphs.captures, graphs.replays) == (1, 29)


def test_larger_blocks_forget_the_graphs_of_smaller_ones():
    graphs = Replayed()
    batch = KVSlots(hidden_states, graphs, 0)
    row = sentence(250)
    prefill(batch, [row], [1])
    for _ in range(90):  # past 320 columns, which is what was made for 250
        row.append(RNG.randrange(40))
        [hidden] = step(batch, row[-1:])
        torch.testing.assert_close(hidden, recomputed(row), atol=2e-5, rtol=1e-4)
    assert graphs.captures == 2


def test_blocks_beyond_the_spare_bytes_are_let_go_with_the_last_row_and_others_are_not():
    held = []
    for spare in (0, 2**30):
        batch = slots(spare)
        prefill(batch, [sentence(30)], [4])
        batch.keep([])
        held.append(bool(batch._layers))
    assert held == [False, True]


def test_one_long_row_after_many_short_ones_takes_no_room_for_many_long_ones():
    batch = slots(spare=0)
    prefill(batch, [sentence(10)], [16])
    batch.keep([3])
    prefill(batch, [sentence(400)], [1])
    assert batch._shape == (2, 512)


def test_a_step_that_cannot_be_captured_runs_as_it_is_and_says_so_once(caplog):
    class Refusing(Replayed):
        def capture(self, step):
            raise RuntimeError("operation not permitted when stream is capturing")

    batch = KVSlots(hidden_states, Refusing(), 2**20)
    row = sentence(5)
    prefill(batch, [row], [1])
    for _ in range(4):
        row.append(RNG.randrange(40))
        [hidden] = step(batch, row[-1:])
        torch.testing.assert_close(hidden, recomputed(row), atol=2e-5, rtol=1e-4)
    assert [record.message for record in caplog.records].count(
        "decoding steps are not captured as CUDA graphs, which makes them slower: operation not permitted when stream"
        " is capturing"
    ) == 1


@pytest.mark.parametrize(
    ("config", "attention", "expected"),
    [
        (LlamaConfig(), "sdpa", True),
        (LlamaConfig(), "eager", False),
        (MistralConfig(sliding_window=None), "sdpa", True),
        (MistralConfig(sliding_window=4096), "sdpa", False),
        (Qwen2Config(), "sdpa", True),
        (Qwen2Config(use_sliding_window=True, sliding_window=64, max_window_layers=2), "sdpa", False),
    ],
)
def test_a_mask_of_lengths_serves_models_whose_layers_all_read_everything(config, attention, expected):
    config._attn_implementation = attention
    assert reads_everything(config) is expected
