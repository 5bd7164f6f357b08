"""A tiny language model whose running rows are kept by one of our caches, and each row recomputed from its tokens."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaModel
from transformers.cache_utils import Cache

from covervlm.server.engines.embedded.kv_batch import KVBatch
from covervlm.server.engines.embedded.kv_slots import KVSlots
from covervlm.server.engines.embedded.step_graphs import StepGraphs
from covervlm.server.engines.embedded.stepping import Rows

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


class Replayed(StepGraphs):
    """A graph on a CPU: what was handed over when it was captured is run again, on the memory of that time."""

    def __init__(self) -> None:
        super().__init__()
        self.captures = self.replays = 0

    def capture(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.captures += 1
        result = step()

        def replay() -> None:
            self.replays += 1
            result.copy_(step())

        return replay, result


def hidden_states(tokens: Tensor, positions: Tensor, mask: Tensor, cache: Cache) -> Tensor:
    return MODEL(
        input_ids=tokens[:, None],
        position_ids=positions[:, None],
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[:, -1]


def slots(spare: int = 2**20) -> KVSlots:
    return KVSlots(hidden_states, Replayed(), spare)


def batch_of_rows() -> KVBatch:
    return KVBatch(hidden_states)


@torch.inference_mode()
def prefill(batch: Rows, sequences: list[list[int]], repeats: list[int]) -> None:
    longest = max(map(len, sequences))
    ids = torch.tensor([s + [0] * (longest - len(s)) for s in sequences])
    cache = DynamicCache()
    MODEL(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True)
    batch.join([(layer.keys, layer.values) for layer in cache.layers], [len(s) for s in sequences], repeats)


@torch.inference_mode()
def step(batch: Rows, tokens: list[int]) -> Tensor:
    return batch.decode(tokens, batch.lengths)


@torch.inference_mode()
def recomputed(sequence: list[int]) -> torch.Tensor:
    return MODEL(input_ids=torch.tensor([sequence])).last_hidden_state[0, -1]
