"""A text tower whose prompt ends in a free word embedding, so that a word can be learned."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


class PromptTower:
    """Encodes a prompt such as "fruit with a color of *", where `*` is any point of the word embedding space.

    The prompt "*" is the word alone.

    It is a structural copy of the model's text side on the same, frozen weights: gradients flow to the word only, and
    other threads may use the model meanwhile. One tower serves one thread at a time.
    """

    def __init__(self, model: Any, tokenizer: Any, prompt: str, *, limit: int, padding_length: int | None) -> None:
        """ValueError for a prompt of more than `limit` tokens, or of none."""
        if not prompt.endswith("*") or prompt.count("*") != 1:
            raise ValueError("the prompt must end in '*', the place of the word")
        self.prompt = prompt
        tokenizer = copy.deepcopy(tokenizer)
        self._tokenizer = tokenizer
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        # The vision side is left out of the copy.
        shared |= {id(model.vision_model): None}
        self._model = copy.deepcopy(model, shared)
        self._embeddings = self._model.text_model.get_input_embeddings()
        self._ids, self._slot = _prompt_ids(tokenizer, prompt[:-1].strip(), limit, padding_length)
        self._word: Tensor | None = None
        self._embeddings.register_forward_hook(self._insert_word)

    @property
    def word_dimensions(self) -> int:
        return self._embeddings.weight.shape[1]

    def words(self, words: Sequence[str]) -> Tensor:
        """(m, d_w): each word's input embedding, the mean over its tokens where it has several."""
        rows = []
        for word in words:
            ids = self._tokenizer(" " + word.strip(), add_special_tokens=False).input_ids
            if not ids:
                raise ValueError(f"the tokenizer makes no tokens of {word[:80]!r}")
            rows.append(self._embeddings.weight[torch.tensor(ids)].mean(dim=0))
        return torch.stack(rows).detach()

    def encode(self, word: Tensor) -> Tensor:
        """(b, d_w) word embeddings to (b, d) text embeddings, L2-normalised; differentiable."""
        self._word = word
        try:
            ids = self._ids.to(word.device).expand(len(word), -1)
            output = self._model.get_text_features(input_ids=ids)
        finally:
            self._word = None
        return normalize(output.pooler_output, dim=1)

    def _insert_word(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        assert self._word is not None
        before, after = output[:, : self._slot], output[:, self._slot + 1 :]
        return torch.cat([before, self._word.unsqueeze(1), after], dim=1)


def _prompt_ids(tokenizer: Any, text: str, limit: int, padding_length: int | None) -> tuple[Tensor, int]:
    """Ids of the prompt with one more token after its last word, and that token's position."""
    alone = not text
    text = text or "a"  # a word in whose place the free one stands
    bare = tokenizer(text, add_special_tokens=False).input_ids
    full = tokenizer(text).input_ids
    starts = [i for i in range(len(full)) if full[i : i + len(bare)] == bare]
    if not bare or not starts:
        raise ValueError(f"the tokenizer makes no tokens of {text[:80]!r}")
    end = starts[0] + len(bare)
    slot = starts[0] if alone else end
    # Its embedding is replaced; the id only must not be one that the tower looks for, such as the end of text.
    ids = [*full[:slot], bare[-1], *full[end:]]
    if len(ids) > limit:
        raise ValueError(f"the prompt '{text[:80]} *' has {len(ids)} tokens; this model reads {limit} tokens at most")
    if padding_length is not None:
        padding = tokenizer.pad_token_id
        ids += [padding] * (padding_length - len(ids))
    return torch.tensor([ids]), slot
