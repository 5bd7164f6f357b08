"""The workers' side of pruning: tower outputs kept across questions, and one batched selection for all of a step."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from covervlm.pruners import PruneInput, Pruner, get_pruner
from covervlm.pruners.inputs import Selection
from covervlm.server.engines.feature_cache import FeatureCache
from covervlm.server.vllm_plugin.architecture import Architecture
from covervlm.server.vllm_plugin.layouts import Layout
from covervlm.server.vllm_plugin.plan import Plan

log = logging.getLogger(__name__)

_REMEMBERED = 4096
"""Selections kept for reports."""


@dataclass(frozen=True, eq=False)
class TowerOutput:
    """What a tower and projector say about one image: tokens (rows, d), features (rows, d_v), CLS attention (rows,)."""

    tokens: Tensor
    features: Tensor
    cls_attention: Tensor | None = None
    intact = True
    """Nothing to find out when a cache hands it back: every selection looks for NaN and infinity."""

    @property
    def nbytes(self) -> int:
        tensors = (self.tokens, self.features, self.cls_attention)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)

    def to(self, device: torch.device | str) -> "TowerOutput":
        attention = None if self.cls_attention is None else self.cls_attention.to(device)
        return TowerOutput(self.tokens.to(device), self.features.to(device), attention)


@dataclass(frozen=True)
class Chosen:
    """One image's selection. indices: kept positions in the unpruned sequence. milliseconds: its share of the step."""

    indices: tuple[int, ...]
    coverage: float
    milliseconds: float


@dataclass
class Selections:
    """Runs plans. Used by one thread.

    The cache lives in host memory: what the device has beyond weights belongs to vLLM's own accounting.
    """

    architecture: Architecture
    embed: Callable[[Tensor], Tensor]
    cache_bytes: int
    cache: Any = field(init=False)
    recent: OrderedDict[str, Chosen] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.cache = FeatureCache(self.cache_bytes)

    def layout(self, plan: Plan) -> Layout:
        """The unpruned tokens of a plan's image."""
        return self.architecture.layouts(plan.shape)

    def missing(self, plans: Sequence[Plan]) -> list[int]:
        """Which of the plans' images the tower must look at; of equal ones, the first."""
        keys = [self._key(plan) for plan in plans]
        return [i for i, key in enumerate(keys) if key not in keys[:i] and self.cache.peek(key) is None]

    def run(
        self, plans: Sequence[Plan], looked: Sequence[tuple[Plan, TowerOutput]], device: torch.device
    ) -> list[tuple[Tensor, Tensor]]:
        """For each plan, the kept vision tokens (kept, d) and their places in the unpruned sequence (kept,).

        looked: tower outputs of the images that were `missing`.
        """
        fresh = {self._key(plan): output for plan, output in looked}
        outputs = []
        for plan in plans:
            key = self._key(plan)
            stored = self.cache.get(key)
            outputs.append(fresh[key] if stored is None else stored.to(device))
        for key, output in fresh.items():
            if output.nbytes <= self.cache_bytes:
                self.cache.put(key, output.to("cpu"))
        chosen: dict[int, tuple[Tensor, Tensor]] = {}
        for method in dict.fromkeys(plan.method for plan in plans):
            members = [i for i, plan in enumerate(plans) if plan.method == method]
            pruner = get_pruner(method, **self.architecture.pruner_params)
            results = self._select(pruner, [plans[i] for i in members], [outputs[i] for i in members])
            chosen |= dict(zip(members, results, strict=True))
        return [chosen[i] for i in range(len(plans))]

    def _select(
        self, pruner: Pruner, plans: Sequence[Plan], outputs: Sequence[TowerOutput]
    ) -> list[tuple[Tensor, Tensor]]:
        """One call of the method for every part of every image."""
        started = time.perf_counter()
        device = outputs[0].tokens.device
        texts = self._texts([plan.question for plan in plans], device)
        layouts = [self.layout(plan) for plan in plans]
        inputs, counts = [], []
        for plan, output, text, layout in zip(plans, outputs, texts, layouts, strict=True):
            for number, part in enumerate(layout.parts):
                rows = part.rows.to(device)
                attention = output.cls_attention
                inputs.append(
                    PruneInput(
                        tokens=output.tokens[rows],
                        features=output.features[rows],
                        text=text if pruner.uses_text else None,
                        allowed=None if part.allowed is None else part.allowed.to(device),
                        grid=part.grid,
                        cls_attention=attention[rows] if pruner.uses_cls_attention and attention is not None else None,
                        seed=plan.seed + number,
                    )
                )
                counts.append(layout.share(plan.budget))
        selections = self._choose(pruner, inputs, counts)
        # One transfer for all images: each would make the host wait for the device.
        indices = torch.cat([selection.indices for selection in selections]).cpu()
        picks = iter(indices.split([len(selection.indices) for selection in selections]))
        coverages = iter([selection.coverage for selection in selections])
        results = []
        elapsed = (time.perf_counter() - started) * 1e3 / len(plans)
        for plan, output, layout in zip(plans, outputs, layouts, strict=True):
            mine = [(part, next(picks)) for part in layout.parts]
            rows = torch.cat([part.rows[pick] for part, pick in mine])
            positions, order = torch.cat([part.positions[pick] for part, pick in mine]).sort()
            coverage = sum(next(coverages) for _ in mine) / len(mine)
            if len(positions) != plan.kept:
                raise RuntimeError(f"{plan.method} kept {len(positions)} tokens where {plan.kept} were promised")
            self._remember(plan.digest, Chosen(tuple(positions.tolist()), coverage, elapsed))
            results.append((output.tokens[rows[order].to(device)], positions))
        return results

    def _choose(self, pruner: Pruner, inputs: Sequence[PruneInput], counts: Sequence[int]) -> list[Selection]:
        """An exception here would end vLLM's engine for all its requests, so numbers that overflowed count as zero."""
        try:
            return pruner.choose(inputs, counts)
        except ValueError as error:
            log.warning("a vision tower gave numbers that are none: %s", error)
            return pruner.choose([_finite(one) for one in inputs], counts)

    def _texts(self, questions: Sequence[Sequence[int]], device: torch.device) -> list[Tensor | None]:
        """Input embeddings of every question's words, looked up together."""
        ids = [token for question in questions for token in question]
        if not ids:
            return [None] * len(questions)
        embedded = self.embed(torch.tensor(ids, device=device))
        return [text if len(text) else None for text in embedded.split([len(question) for question in questions])]

    def _remember(self, digest: str, chosen: Chosen) -> None:
        self.recent[digest] = chosen
        self.recent.move_to_end(digest)
        while len(self.recent) > _REMEMBERED:
            self.recent.popitem(last=False)

    def _key(self, plan: Plan) -> str:
        return plan.image.hex() + ("+cls" if get_pruner(plan.method).uses_cls_attention else "")


def in_batches(images: Sequence[int], sizes: Sequence[int], most: int) -> list[list[int]]:
    """The images in order, in batches whose sizes sum to `most` at most; a larger one has a batch of its own."""
    batches: list[list[int]] = []
    room = 0
    for image, size in zip(images, sizes, strict=True):
        if not batches or size > room:
            batches.append([])
            room = most
        batches[-1].append(image)
        room -= size
    return batches


def _finite(image: PruneInput) -> PruneInput:
    """The input with zeros for NaN and infinity."""

    def cured(part: Tensor | None) -> Any:
        return None if part is None else part.nan_to_num(0.0, 0.0, 0.0)

    return replace(
        image,
        tokens=cured(image.tokens),
        features=cured(image.features),
        text=cured(image.text),
        cls_attention=cured(image.cls_attention),
    )
