"""What an architecture is to the engines: where an image's vision tokens lie, what its tower says, and its adapter."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import (
    NO_TOOLS,
    USUAL,
    ImagePart,
    Prompt,
    Recipe,
    TemplateOptions,
    ToolUse,
    VideoPart,
)
from covervlm.server.models.clip_text import NO_VIDEOS, ClipText
from covervlm.server.models.pictures import Cost
from covervlm.server.models.processor import ChatProcessor, all_words, visual_words

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels of an image."""


@dataclass(frozen=True)
class Scaling:
    """size: (width, height) in pixels for the tower. total: tokens that the image or clip makes at its own size."""

    size: tuple[int, int]
    total: int


@dataclass(frozen=True, eq=False)
class Part:
    """A part of an image that is pruned on its own: the whole image, one crop, or one moment of a clip.

    positions: (n,) int64, places in the unpruned sequence. rows: (n,) int64, the tower's rows of the same tokens. Both
    ascend, but where parts are joined, rows alone do. grid: (rows, columns), n cells in raster order. allowed: (n,)
    bool, False for patches that hold nothing but padding; None means all. The tensors are on the CPU.
    """

    positions: Tensor
    rows: Tensor
    grid: tuple[int, int]
    allowed: Tensor | None = None

    def kept(self, count: int) -> int:
        """How many tokens a pruner keeps of this part when it is told to keep `count` (`Pruner.choose`)."""
        size = len(self.positions)
        allowed = size if self.allowed is None else int(self.allowed.sum())
        return size if size <= count else min(count, allowed or size)


@dataclass(frozen=True, eq=False)
class Layout:
    """An image of `total` unpruned tokens; those that no part names are read only when nothing is pruned.

    slots: how many placeholders of a prompt stand for it, each for as many of its tokens.
    """

    total: int
    parts: tuple[Part, ...]
    slots: int = 1

    @cached_property
    def rows(self) -> Tensor:
        """(total,) int64: the row of the tower's output for every token of the sequence, -1 where no part has it."""
        rows = torch.full((self.total,), -1)
        for part in self.parts:
            rows[part.positions] = part.rows
        return rows

    @property
    def grid(self) -> tuple[int, int] | None:
        """(rows, columns) by which kept positions can be drawn, None where tokens form no single grid."""
        return self.parts[0].grid if len(self.parts) == 1 and len(self.parts[0].positions) == self.total else None

    @property
    def prunable(self) -> int:
        return sum(len(part.positions) for part in self.parts)

    @cached_property
    def joined(self) -> "Layout":
        """The same tokens as one part, crop after crop as the tower gives them."""
        if len(self.parts) < 2:
            return self
        rows, order = torch.cat([part.rows for part in self.parts]).sort()
        positions = torch.cat([part.positions for part in self.parts])[order]
        allowed = None
        if any(part.allowed is not None for part in self.parts):
            masks = [torch.ones(len(p.rows), dtype=torch.bool) if p.allowed is None else p.allowed for p in self.parts]
            allowed = torch.cat(masks)[order]
        return Layout(self.total, (Part(positions, rows, (1, len(rows)), allowed),))

    def share(self, budget: int) -> int:
        """What each part keeps: a budget is spread evenly, at least one token each."""
        return max(1, budget // len(self.parts))

    def kept(self, budget: int) -> int:
        return sum(part.kept(self.share(budget)) for part in self.parts)

    def positions(self, picks: Sequence[Tensor]) -> Tensor:
        """(k,) int64 ascending: the places in the sequence of the picks of each part; all on the CPU."""
        return torch.cat([part.positions[pick] for part, pick in zip(self.parts, picks, strict=True)]).sort().values

    def counts(self, kept: Tensor | None = None) -> list[int]:
        """How many tokens each slot is read as; kept: their places in the sequence, (k,) int64; None for all."""
        if kept is None or self.slots == 1:
            return [(self.total if kept is None else len(kept)) // self.slots] * self.slots
        return torch.bincount(kept // (self.total // self.slots), minlength=self.slots).tolist()


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """What tower and projector say about one image, and all that a cache needs to keep of it.

    tokens: (rows, d) projector outputs. features: (rows, d_v) vision features before the projector. cls_attention:
    (rows,) float32, only where it was asked for. box: the area that the layout's grid covers. seconds_per_group: the
    time between two parts of a clip; None for a still image. deeper: (rows, layers * d), what the language model's
    first layers add to each token, where it does that (DeepStack).
    """

    layout: Layout
    tokens: Tensor
    features: Tensor
    cls_attention: Tensor | None = None
    box: Box | None = None
    seconds_per_group: float | None = None
    deeper: Tensor | None = None

    @property
    def _tensors(self) -> list[Tensor]:
        every = (self.tokens, self.features, self.cls_attention, self.deeper)
        return [tensor for tensor in every if tensor is not None]

    @property
    def nbytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors)

    @property
    def intact(self) -> bool:
        """Whether tokens and features fit together and all numbers are finite."""
        return len(self.tokens) == len(self.features) and all(map(_finite, self._tensors))

    def at(self, positions: Tensor) -> Tensor:
        """(k, d): the tokens at places in the unpruned sequence, (k,) int64 on the CPU, that parts name.

        Where there is more for deeper layers, it follows in further columns: (k, d + layers * d).
        """
        rows = self.layout.rows[positions].to(self.tokens.device)
        tokens = self.tokens[rows]
        return tokens if self.deeper is None else torch.cat([tokens, self.deeper[rows]], dim=1)

    def to(self, device: torch.device | str) -> "ImageTokens":
        attention, deeper = (None if one is None else one.to(device) for one in (self.cls_attention, self.deeper))
        tokens, features = self.tokens.to(device), self.features.to(device)
        return replace(self, tokens=tokens, features=features, cls_attention=attention, deeper=deeper)


class Architecture:
    """What both engines know of an architecture from its configuration alone, before any weights are loaded.

    Images of one shape share one layout: whatever of an image's size it depends on, which the architecture says. A
    subclass sets the class attributes that differ, and implements `_layout` and `cost`.
    """

    pruner_params: ClassVar[Mapping[str, float]] = {}
    """Parameters of the pruning objective."""
    every_word: ClassVar[bool] = False
    """Whether all words of a question guide the selection, and not only those that can name something visible."""
    placeholder_fields: ClassVar[Sequence[str]] = ("image_token_id",)
    """Fields of the configuration with the ids of the tokens that stand for an image or a clip."""
    has_cls_token = False
    free_resolution = False
    """Whether the tower takes pictures of any size, so that a smaller one makes fewer tokens."""
    vision_tokens: int | None = None
    """Tokens of every image, unpruned; None where that depends on the image."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.layout = lru_cache(maxsize=512)(self._layout)

    @classmethod
    def problems(cls, config: Any) -> Iterator[str]:
        """What in a configuration cannot be served, each with its field and the reason, the most telling one first."""
        return iter(())

    def _layout(self, shape: tuple[int, ...]) -> Layout:
        raise NotImplementedError

    def shape(self, width: int, height: int, image_processor: Any) -> tuple[int, int]:
        """The shape of an image of this size, in pixels."""
        return width, height

    def cost(self, width: int, height: int, image_processor: Any, *, frames: int | None = None) -> Cost:
        """What preprocessing an image of this size takes, or a clip of so many frames.

        Raises InvalidRequest where that is more than is sensible.
        """
        raise NotImplementedError

    def box(self, width: int, height: int, image_processor: Any) -> Box | None:
        """The area of an image that its grid of tokens covers; None where there is no single grid."""
        return None

    def clip_shape(self, width: int, height: int, frames: int, image_processor: Any) -> tuple[int, ...]:
        """The shape of a clip of so many frames of this size, in pixels. Raises InvalidRequest where none is read."""
        raise InvalidRequest(NO_VIDEOS, param="messages")

    def clip_pixels(self, frames: Sequence[Image], image_processor: Any) -> Tensor:
        """What the tower is given of a clip of RGB frames of one size."""
        raise NotImplementedError

    def words(self, question: str) -> list[str]:
        """The words of a question that guide the selection."""
        if not self.every_word:
            return visual_words(question)
        return all_words(f"Question: {question}") if question.strip() else []

    def word_ids(self, chat: ChatProcessor, question: str, recipe: Recipe = "default") -> list[int]:
        """Token ids of the words that guide the selection.

        Where every word does, the released recipe splits at spaces, so that punctuation stays, and spells each word as
        if it opened a text.
        """
        if self.every_word and recipe == "released":
            return chat.raw_ids(f"Question: {question}".split()) if question.strip() else []
        return chat.word_ids(self.words(question))

    def frame(self, tokenizer: PreTrainedTokenizerBase) -> tuple[Sequence[int], Sequence[int]]:
        """The tokens that stand before and after an image's own, where its chat template does not write them."""
        return (), ()

    def clip_text(self, tokenizer: Any, image_processor: Any) -> ClipText | None:
        """How a prompt tells of a clip; None where its chat template's placeholder is all of it."""
        return None

    def placeholders(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
        """The tokens that stand for an image or a clip in a prompt, with their ids; ValueError for an unknown id."""
        placeholders: dict[str, int] = {}
        for field in self.placeholder_fields:
            place = getattr(self.config, field)
            name = tokenizer.convert_ids_to_tokens([place])[0]
            if name is None:
                raise ValueError(f"{field} is {place}, an id that the tokenizer does not have")
            placeholders[name] = place
        return placeholders


class Adapter:
    """One architecture's model as transformers runs it; nothing of a request is ever stored on it.

    `tokenize`, `preprocess` and `preprocess_video` may run in several threads at once; the rest runs in the engine's
    thread. A subclass names what it `describes`, and implements `preprocess` and `encode`.
    """

    describes: ClassVar[type[Architecture]]
    position_axes: ClassVar[int] = 1
    """3 for M-RoPE."""
    vision_tower: torch.nn.Module | None = None
    """The model's vision tower, whose weights a CLIP model can share; None where there is none of its own."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.architecture = self.describes(model.config)
        clip_text = self.architecture.clip_text(processor.tokenizer, processor.image_processor)
        self.chat = ChatProcessor(processor, self.architecture.placeholders(processor.tokenizer), clip_text)
        self._frame = self.architecture.frame(processor.tokenizer)
        self.language_model: torch.nn.Module = model.model.language_model
        self.lm_head: Any = model.lm_head
        self.embeddings: torch.nn.Embedding = model.get_input_embeddings()
        self.context_length: int = model.config.text_config.max_position_embeddings
        eos = model.generation_config.eos_token_id
        if eos is None:
            eos = model.config.text_config.eos_token_id
        self.eos_ids = frozenset([eos] if isinstance(eos, int) else eos or ())

    @property
    def vocabulary_size(self) -> int:
        """Columns of the logits, which may be more than the tokenizer has ids."""
        return self.lm_head.out_features

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The calling thread's own tokenizer."""
        return self.chat.tokenizer

    def tokenize(self, prompt: Prompt, template: TemplateOptions = USUAL, tools: ToolUse = NO_TOOLS) -> tuple[int, ...]:
        """The prompt's ids, with one placeholder id per image, in reading order, or as many as its layout has slots."""
        ids = self.chat.tokenize(prompt, self.context_length, template, tools)
        before, after = self._frame
        if before or after:
            framed = (
                (*before, token, *after) if token in self.chat.placeholders.values() else (token,) for token in ids
            )
            ids = tuple(chain.from_iterable(framed))
        return ids

    def cost(self, part: ImagePart | VideoPart) -> Cost:
        """What `preprocess` or `preprocess_video` takes. Raises InvalidRequest."""
        image_processor = self.chat.image_processor
        if isinstance(part, ImagePart):
            return self.architecture.cost(*part.image.size, image_processor)
        return self.architecture.cost(*part.frames[0].size, image_processor, frames=len(part.frames))

    def preprocess(self, image: Image) -> Mapping[str, Any]:
        """The processor's inputs for one image, on the CPU."""
        raise NotImplementedError

    def preprocess_video(self, frames: Sequence[Image], fps: float) -> Mapping[str, Any]:
        """As `preprocess`, for a clip of frames of one size, `fps` of them to a second. Raises InvalidRequest."""
        raise InvalidRequest(NO_VIDEOS, param="messages")

    def scaling(self, part: ImagePart | VideoPart, budget: Callable[[int], int]) -> Scaling | None:
        """How to scale an image or clip so that it makes no more than `budget` of its tokens; None where it does not.

        budget: of the tokens that it makes at its own size, how many there may be. For free resolutions alone.
        """
        raise NotImplementedError

    def preprocess_scaled(self, part: ImagePart | VideoPart, scaling: Scaling) -> Mapping[str, Any]:
        """As `preprocess` or `preprocess_video`, of pictures of another size."""
        raise NotImplementedError

    def encode(self, inputs: Sequence[Mapping[str, Any]], *, cls_attention: bool = False) -> list[ImageTokens]:
        """Run tower and projector over a batch of preprocessed images."""
        raise NotImplementedError

    @torch.inference_mode()
    def question_embeddings(self, question: str, recipe: Recipe = "default") -> Tensor:
        """(m, d) input embeddings of the words of the question that guide the selection; m may be 0."""
        return self._embed(self.architecture.word_ids(self.chat, question, recipe))

    @torch.inference_mode()
    def assemble(
        self, ids: Sequence[int], images: Sequence[ImageTokens], kept: Sequence[Tensor | None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the language model reads: embeddings (T, d), and positions (axes, T + 1) int64.

        kept: of each image, the places in its unpruned sequence to keep, (k,) int64 ascending on the CPU; None for all.
        The last position is that of the first token that will be generated.
        """
        seen: list[Tensor] = []
        for image, positions in zip(images, kept or [None] * len(images), strict=True):
            vision = self.whole(image) if positions is None else image.at(positions)
            seen += vision.split(image.layout.counts(positions))
        pieces, start = [], 0
        for slot, vision in zip(self.chat.slots(ids), seen, strict=True):
            pieces += [self._text(ids[start:slot]), vision]
            start = slot + 1
        embeddings = torch.cat([*pieces, self._text(ids[start:])])
        return embeddings, torch.arange(len(embeddings) + 1, device=embeddings.device)[None]

    def for_generate(self, embeddings: Tensor, positions: Tensor) -> dict[str, Tensor]:
        """Of an assembled prompt, what transformers' own `generate` takes, as a batch of one.

        Raises InvalidRequest for a model whose `generate` cannot be given it.
        """
        inputs = {"inputs_embeds": embeddings[None], "attention_mask": torch.ones_like(positions[:1, :-1])}
        if self.position_axes > 1:  # otherwise they are what `generate` counts itself
            inputs["position_ids"] = positions[:, None, :-1]
        return {name: tensor.clone() for name, tensor in inputs.items()}

    def expanded(self, ids: Sequence[int], counts: Sequence[int]) -> list[int]:
        """The ids with a placeholder for every vision token that is read; counts: of each placeholder, in order."""
        read: list[int] = []
        start = 0
        for slot, count in zip(self.chat.slots(ids), counts, strict=True):
            read += [*ids[start:slot], *[ids[slot]] * count]
            start = slot + 1
        return [*read, *ids[start:]]

    def whole(self, image: ImageTokens) -> Tensor:
        """(total, d): the vision tokens of an unpruned image as the language model reads them."""
        return image.tokens if image.deeper is None else torch.cat([image.tokens, image.deeper], dim=1)

    def _text(self, ids: Sequence[int]) -> Tensor:
        """What the language model reads of tokens of text, in as many columns as vision tokens have."""
        return self._embed(ids)

    def _embed(self, ids: Sequence[int]) -> Tensor:
        return self.embeddings(torch.tensor(ids, dtype=torch.long, device=self.embeddings.weight.device))


def _finite(tensor: Tensor) -> bool:
    # The sum is the cheaper check: it is finite only if all terms are. It may overflow, so the terms decide.
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())
