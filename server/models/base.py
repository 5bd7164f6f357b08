"""What an adapter owes an engine: images to vision tokens, and a prompt with the kept ones to embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from covervlm.server.engines.base import Message


@dataclass(frozen=True, eq=False)
class Region:
    """A part of an image that is pruned on its own: the whole image, one crop, or one temporal group of a video.

    positions: (n,) int64 ascending, the places of the region's tokens in `ImageTokens.tokens`.
    features: (n, d_v) vision features before the projector.
    grid: (rows, columns) of the region's tokens, which are in raster order.
    allowed: (n,) bool, False for patches wholly in padding; None means all.
    cls_attention: (n,) float32, only where it was asked for.
    """

    positions: Tensor
    features: Tensor
    grid: tuple[int, int]
    allowed: Tensor | None = None
    cls_attention: Tensor | None = None


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """All the tower says about one image, and all that a cache needs to keep of it.

    tokens: (n, d) projector outputs in the order in which the unpruned model reads them, newline tokens included.
    regions: the parts to prune; positions that no region names are read only when nothing is pruned.
    grid: (rows, columns) by which a client can draw the kept positions, None where tokens form no single grid.
    box: (left, top, right, bottom) of the area that the grid covers, in pixels of the image; None without a grid.
    layout: whatever else the adapter needs to assemble a prompt, e.g. the merged grid of a Qwen image.
    """

    tokens: Tensor
    regions: tuple[Region, ...]
    grid: tuple[int, int] | None = None
    box: tuple[float, float, float, float] | None = None
    layout: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def nbytes(self) -> int:
        tensors = [self.tokens]
        for region in self.regions:
            tensors += [t for t in (region.features, region.allowed, region.cls_attention) if t is not None]
        return sum(t.numel() * t.element_size() for t in tensors)

    @property
    def intact(self) -> bool:
        """Whether all numbers are finite and every region's features and positions fit to each other and the tokens."""
        return bool(self.tokens.isfinite().all()) and all(
            len(region.features) == len(region.positions)
            and (not len(region.positions) or int(region.positions[-1]) < len(self))
            and bool(region.features.isfinite().all())
            for region in self.regions
        )


@dataclass(frozen=True)
class Prompt:
    """A tokenised chat: ids with exactly one placeholder id per image, at `image_slots`."""

    ids: tuple[int, ...]
    image_slots: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class AssembledPrompt:
    """What the language model reads: embeddings (T, d) and positions (axes, T) int64.

    axes is 1, or 3 for M-RoPE. next_position: the position of the first generated token, the same on every axis.
    """

    embeddings: Tensor
    positions: Tensor
    next_position: int

    def __len__(self) -> int:
        return self.embeddings.shape[0]


@dataclass(frozen=True, eq=False)
class Kept:
    """One image with the positions in `image.tokens` to keep: ascending int64, or None for the unpruned image."""

    image: ImageTokens
    positions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.image) if self.positions is None else self.positions.shape[0]


class Adapter(Protocol):
    """One architecture. Stateless between calls: nothing of a request is ever stored on a model.

    `tokenize` and `preprocess` may run in several threads at once; the rest runs in the engine's thread.
    """

    model: torch.nn.Module
    language_model: torch.nn.Module
    lm_head: torch.nn.Module
    embeddings: torch.nn.Embedding
    context_length: int
    vision_tokens: int | None
    eos_ids: frozenset[int]
    position_axes: int
    has_cls_token: bool
    pruner_params: Mapping[str, float]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The calling thread's own tokenizer."""
        ...

    def tokenize(self, messages: Sequence[Message]) -> Prompt:
        """Apply the chat template; one placeholder id per image, in reading order."""
        ...

    def preprocess(self, image: Image) -> Mapping[str, Any]:
        """The processor's inputs for one image, on the CPU."""
        ...

    def preprocess_video(self, frames: Sequence[Image], fps: float) -> Mapping[str, Any]:
        """As `preprocess`, for a clip of frames of one size, `fps` of them to a second: one region per moment.

        Raises InvalidRequest where the architecture reads no videos.
        """
        ...

    def encode(self, inputs: Sequence[Mapping[str, Any]], *, cls_attention: bool = False) -> list[ImageTokens]:
        """Run tower and projector over a batch of preprocessed images."""
        ...

    def question_embeddings(self, question: str) -> Tensor:
        """(m, d) input embeddings of the words of the question that guide the selection; m may be 0."""
        ...

    def assemble(self, prompt: Prompt, images: Sequence[Kept]) -> AssembledPrompt:
        """Put the kept vision tokens into their slots."""
        ...
