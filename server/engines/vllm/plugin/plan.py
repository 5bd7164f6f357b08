"""What vLLM's front end decides about one image and its workers carry out, and how it travels between them."""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from covervlm.server.core.generation import Recipe

FIELD = "vision_prune"
"""Name of the option in requests and in the model's configuration, and of the field that carries plans."""


@dataclass(frozen=True)
class Plan:
    """One image's pruning, complete before the vision tower runs.

    image: 16 bytes that name the image and how it was preprocessed, whatever is asked about it.
    shape: what the layout of its tokens depends on, see `models.base.Architecture`.
    budget: vision tokens to keep; 0 keeps all of them. kept: how many tokens the language model will read.
    parameters: the method's own, as in PruningPolicy, and so is `recipe`.
    question: token ids of the words that guide the selection; empty for methods that read no text.
    """

    image: bytes
    shape: tuple[int, int]
    method: str
    budget: int
    kept: int
    question: tuple[int, ...] = ()
    seed: int = 0
    parameters: tuple[tuple[str, Any], ...] = ()
    recipe: Recipe = "default"

    @property
    def prunes(self) -> bool:
        return self.budget > 0

    def to_tensor(self) -> Tensor:
        """(8 + letters + words,) int64, the only thing about pruning that is sent to the workers.

        The letters are those of the method, its parameters and the recipe, as JSON.
        """
        first, second = (int.from_bytes(self.image[i : i + 8], "big", signed=True) for i in (0, 8))
        letters = json.dumps([self.method, self.parameters, self.recipe]).encode()
        header = [first, second, *self.shape, self.seed, self.budget, self.kept, len(letters)]
        return torch.tensor([*header, *letters, *self.question], dtype=torch.int64)

    @classmethod
    def from_tensor(cls, packed: Tensor) -> Self:
        first, second, a, b, seed, budget, kept, size, *rest = packed.tolist()
        method, parameters, recipe = json.loads(bytes(rest[:size]))
        return cls(
            image=b"".join(part.to_bytes(8, "big", signed=True) for part in (first, second)),
            shape=(a, b),
            method=method,
            budget=budget,
            kept=kept,
            question=tuple(rest[size:]),
            seed=seed,
            parameters=tuple((name, value) for name, value in parameters),
            recipe=recipe,
        )

    @property
    def digest(self) -> str:
        """Names what the language model reads of this image: image, method, parameters, counts and question."""
        return hashlib.sha256(b"covervlm" + self.to_tensor().numpy().tobytes()).hexdigest()

    def whole(self) -> "Plan":
        """The same image unpruned; every question and method shares its digest."""
        return replace(self, method="none", budget=0, question=(), seed=0, parameters=(), recipe="default")
