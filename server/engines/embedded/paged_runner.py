"""The language model's forward passes by OpenVINO, over blocks of keys and values; for a CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from covervlm.server.engines.embedded.kv_blocks import BlockRow, KVBlocks
from covervlm.server.engines.embedded.openvino_model import compile_model
from covervlm.server.engines.embedded.prefix_cache import Layers, Prefix
from covervlm.server.engines.embedded.runner import Runner
from covervlm.server.models.base import Adapter

if TYPE_CHECKING:
    import openvino

_CLOSE = 1e-3
"""How far hidden states may be from transformers', as a part of the largest: sums in another order differ by 1e-6."""


class PagedRunner(Runner):
    """New tokens of all rows are read one after the other, without padding, each row's after its own blocks."""

    def __init__(self, adapter: Adapter, model: openvino.CompiledModel) -> None:
        super().__init__(adapter)
        self._request = model.create_infer_request()
        names = [port.any_name for port in model.inputs]
        # Keys come before values, and layers by their numbers.
        self._sides = [f"{side}_cache.{layer}" for layer in range(len(names)) for side in ("key", "value")]
        self._sides = [name for name in self._sides if name in names]
        self._blocks = KVBlocks([_shape(model.input(name)) for name in self._sides])
        self._bound: list[Tensor] = []
        self._rows: list[BlockRow] = []
        self._bind()

    def prefill(
        self,
        prompts: Sequence[tuple[Tensor, Tensor]],
        repeats: Sequence[int],
        prefix: Prefix | None = None,
        *,
        states: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        known = prefix or Prefix(0, ())
        rows = [self._blocks.open(known.layers, known.length) for _ in prompts]
        try:
            embeddings, positions = zip(*prompts, strict=True)
            counts = [len(one) for one in embeddings]
            read = range(sum(counts)) if states else [end - 1 for end in accumulate(counts)]
            hidden = self._pass(rows, counts, torch.cat(embeddings), torch.cat(positions, 1), read)
            states_of = hidden.split(counts if states else [1] * len(counts))
            logits = self._logits(torch.stack([one[-1] for one in states_of]))
            for row, count in zip(list(rows), repeats, strict=True):
                rows += [self._blocks.copy(row) for _ in range(count - 1)]
        except BaseException:
            self._close(rows)
            raise
        copies = iter(rows[len(prompts) :])
        for row, count in zip(rows[: len(prompts)], repeats, strict=True):
            self._rows += [row, *(next(copies) for _ in range(count - 1))][:count]
        self._close([row for row, count in zip(rows, repeats, strict=False) if not count])
        return logits, list(states_of)

    def decode(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        embeddings = self._adapter.embeddings(torch.tensor(tokens))
        return self._logits(self._pass(self._rows, [1] * len(tokens), embeddings, torch.tensor([positions])))

    @contextmanager
    def text(self) -> Iterator[BlockRow]:
        row = self._blocks.open()
        try:
            yield row
        finally:
            self._close([row])

    def read_on(self, text: BlockRow, embeddings: Tensor, positions: Tensor) -> Tensor:
        return self._pass([text], [len(embeddings)], embeddings, positions)

    def probe(self) -> None:
        with self.text() as text:
            start = torch.zeros(1, 1, dtype=torch.long)
            self._check(self._pass([text], [1], self._adapter.embeddings(start[0]), start))

    def read(self, row: int) -> Layers:
        return self._blocks.layers(self._rows[row])

    def keep(self, rows: Sequence[int]) -> None:
        kept = set(rows)
        gone = [row for number, row in enumerate(self._rows) if number not in kept]
        self._rows = [self._rows[row] for row in rows]
        self._close(gone)

    def reset(self) -> None:
        self.keep([])

    def _pass(
        self,
        rows: Sequence[BlockRow],
        counts: Sequence[int],
        embeddings: Tensor,
        positions: Tensor,
        read: Sequence[int] | None = None,
    ) -> Tensor:
        """Hidden states (N, d) of the rows' next tokens, so many of each, as far as `read` names them (default: all).

        embeddings (T, d), positions (1, T).
        """
        lengths = [row.length for row in rows]
        for row, count in zip(rows, counts, strict=True):
            self._blocks.extend(row, count)
        self._bind()
        inputs = {
            "inputs_embeds": np.ascontiguousarray(embeddings.detach().numpy()),
            "position_ids": np.ascontiguousarray(positions[0].numpy()),
            "read": np.array(range(len(embeddings)) if read is None else read, np.int64),
            "max_context_len": np.array(max(row.length for row in rows), np.int32),
            "past_lens": np.array(lengths, np.int32),
            "subsequence_begins": _begins(counts),
            "block_indices_begins": _begins([len(row.blocks) for row in rows]),
            "block_indices": np.array([block for row in rows for block in row.blocks], np.int32),
        }
        for name, value in inputs.items():
            self._request.set_tensor(name, _tensor(value))
        self._request.infer()
        return torch.tensor(self._request.get_output_tensor(0).data).flatten(0, -2)

    def _close(self, rows: Sequence[BlockRow]) -> None:
        self._blocks.close(rows)
        self._bind()

    def _bind(self) -> None:
        """Where the blocks are, which the request keeps in memory as long as it is not told of others."""
        if self._bound is not self._blocks.sides:
            self._bound = self._blocks.sides
            for name, side in zip(self._sides, self._bound, strict=True):
                self._request.set_tensor(name, _tensor(side.numpy()))


def load_paged(adapter: Adapter) -> PagedRunner:
    """Compile the language model, see that it agrees with transformers', and let go of transformers' layers.

    Raises ValueError where OpenVINO cannot run this model, or runs another one.
    """
    runner = PagedRunner(adapter, compile_model(adapter))
    with torch.inference_mode():
        _compare(adapter, runner)
    adapter.language_model.layers.to("meta")
    return runner


def _compare(adapter: Adapter, runner: PagedRunner) -> None:
    vocabulary = adapter.embeddings.weight.shape[0]
    tokens = torch.randint(vocabulary, (40,), generator=torch.Generator().manual_seed(0))
    embeddings, positions = adapter.embeddings(tokens), torch.arange(len(tokens))[None]
    expected = adapter.language_model(inputs_embeds=embeddings[None], use_cache=False).last_hidden_state[0]
    with runner.text() as text:
        pieces = [
            runner.read_on(text, embeddings[start:end], positions[:, start:end]) for start, end in ((0, 39), (39, 40))
        ]
    difference = (torch.cat(pieces) - expected).abs().max() / expected.abs().max()
    if not difference <= _CLOSE:
        raise ValueError(
            f"--runtime openvino cannot run this model: its hidden states differ by {float(difference):.1e} from "
            "transformers'; leave the option out"
        )


def _shape(port: openvino.ConstOutput) -> tuple[int, int, int]:
    heads, tokens, size = (port.partial_shape[axis].get_length() for axis in (1, 2, 3))
    return heads, tokens, size


def _begins(counts: Sequence[int]) -> np.ndarray:
    return np.array([0, *accumulate(counts)], np.int32)


def _tensor(array: np.ndarray) -> openvino.Tensor:
    import openvino

    return openvino.Tensor(array, shared_memory=True)
