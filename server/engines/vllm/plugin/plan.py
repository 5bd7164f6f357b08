"""What vLLM's front end decides about one image or clip and its workers carry out, and how it travels between them."""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from covervlm.server.core.generation import Recipe

FIELD = "vision_prune"
"""Name of the option in requests and in the model's configuration, and of the field that carries images' plans."""
FIELDS = {"image": FIELD, "video": f"{FIELD}_clip"}
"""The fields that carry plans, by vLLM's names of modalities."""


@dataclass(frozen=True)
class Plan:
    """The pruning of one image or clip, complete before the vision tower runs.

    image: 16 bytes that name the image and how it was preprocessed, whatever is asked about it.
    shape: what the layout of its tokens depends on, see `models.base.Architecture`.
    budget: vision tokens to keep; 0 keeps all of them. kept: how many tokens the language model will read.
    parameters: the method's own, as in PruningPolicy, and so is `recipe`.
    frames, fps: of a clip, and how many of them are a second; 0 for an image.
    question: token ids of the words that guide the selection; empty for methods that read no text.
    """

    image: bytes
    shape: tuple[int, ...]
    method: str
    budget: int
    kept: int
    question: tuple[int, ...] = ()
    seed: int = 0
    parameters: tuple[tuple[str, Any], ...] = ()
    recipe: Recipe = "default"
    frames: int = 0
    fps: float = 0.0

    @property
    def prunes(self) -> bool:
        return self.budget > 0

    def to_tensor(self) -> Tensor:
        """(6 + letters + words,) int64, the only thing about pruning that is sent to the workers.

        The letters are those of all that is not a whole number of its own, as JSON.
        """
        first, second = (int.from_bytes(self.image[i : i + 8], "big", signed=True) for i in (0, 8))
        told = [self.shape, self.method, self.parameters, self.recipe, self.frames, self.fps]
        letters = json.dumps(told).encode()
        header = [first, second, self.seed, self.budget, self.kept, len(letters)]
        return torch.tensor([*header, *letters, *self.question], dtype=torch.int64)

    @classmethod
    def from_tensor(cls, packed: Tensor) -> Self:
        first, second, seed, budget, kept, size, *rest = packed.tolist()
        shape, method, parameters, recipe, frames, fps = json.loads(bytes(rest[:size]))
        return cls(
            image=b"".join(part.to_bytes(8, "big", signed=True) for part in (first, second)),
            shape=tuple(shape),
            method=method,
            budget=budget,
            kept=kept,
            question=tuple(rest[size:]),
            seed=seed,
            parameters=tuple((name, value) for name, value in parameters),
            recipe=recipe,
            frames=frames,
            fps=fps,
        )

    @property
    def digest(self) -> str:
        """Names what the language model reads of this image: image, method, parameters, counts and question."""
        return hashlib.sha256(b"covervlm" + self.to_tensor().numpy().tobytes()).hexdigest()

    def whole(self) -> "Plan":
        """The same image unpruned; every question and method shares its digest."""
        return replace(self, method="none", budget=0, question=(), seed=0, parameters=(), recipe="default")
