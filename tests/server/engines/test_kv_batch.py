import random

import torch
from transformers import DynamicCache, LlamaConfig, LlamaModel

from covervlm.server.engines.embedded.model_runner import KVBatch

torch.manual_seed(0)
MODEL = LlamaModel(
    LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.4,
    )
).eval()


@torch.inference_mode()
def prefill(batch: KVBatch, sequences: list[list[int]], repeats: list[int]) -> None:
    longest = max(map(len, sequences))
    ids = torch.tensor([s + [0] * (longest - len(s)) for s in sequences])
    cache = DynamicCache()
    MODEL(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True)
    batch.join([(layer.keys, layer.values) for layer in cache.layers], [len(s) for s in sequences], repeats)


@torch.inference_mode()
def step(batch: KVBatch, tokens: list[int]) -> torch.Tensor:
    positions = torch.tensor(batch.lengths)[:, None]
    return MODEL(
        input_ids=torch.tensor(tokens)[:, None],
        position_ids=positions,
        attention_mask=batch.step_mask(),
        past_key_values=batch.cache,
        use_cache=True,
    ).last_hidden_state[:, -1]


@torch.inference_mode()
def recomputed(sequence: list[int]) -> torch.Tensor:
    return MODEL(input_ids=torch.tensor([sequence])).last_hidden_state[0, -1]


def test_any_order_of_joining_leaving_and_stepping_equals_recomputing_each_row():
    rng = random.Random(3)
    batch, rows = KVBatch(), []
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
        assert batch.width == max(map(len, rows), default=0)


def test_columns_that_no_row_uses_are_cut():
    batch = KVBatch()
    prefill(batch, [[1] * 200, [2] * 5], [1, 1])
    assert batch.width == 200
    batch.keep([1])
    assert batch.width == 5


def test_an_emptied_batch_starts_afresh():
    batch = KVBatch()
    prefill(batch, [[1, 2, 3]], [1])
    batch.keep([])
    assert (len(batch), batch.width) == (0, 0)
    prefill(batch, [[4, 5]], [2])
    assert batch.lengths == [2, 2]
