"""The workers' side of pruning: tower outputs kept across questions, and one batched selection for all of a step."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from cachetools import LRUCache
from torch import Tensor

from covervlm.pruners import PruneInput, Pruner, Selection, get_pruner
from covervlm.server.engines.vllm.plugin.plan import Plan
from covervlm.server.models.base import Architecture, ImageTokens, Layout
from covervlm.server.selection.feature_cache import FeatureCache
from covervlm.server.selection.selector import parts_to_prune, pruned_layout

log = logging.getLogger(__name__)

_REMEMBERED = 4096
"""Selections kept for reports."""


@dataclass(frozen=True)
class Chosen:
    """One image's selection. indices: kept positions in the unpruned sequence. milliseconds: its share of the step."""

    indices: tuple[int, ...]
    coverage: float
    milliseconds: float


class Selections:
    """Runs plans. Used by one thread.

    The cache lives in host memory: what the device has beyond weights belongs to vLLM's own accounting.
    """

    def __init__(self, architecture: Architecture, embed: Callable[[Tensor], Tensor], cache_bytes: int) -> None:
        """embed: token ids (m,) to their input embeddings (m, d)."""
        self.cache = FeatureCache(cache_bytes)
        self.recent: LRUCache[str, Chosen] = LRUCache(_REMEMBERED)
        self.architecture = architecture
        self._embed = embed

    def layout(self, plan: Plan) -> Layout:
        """The unpruned tokens of a plan's image."""
        return self.architecture.layout(plan.shape)

    def missing(self, plans: Sequence[Plan]) -> list[int]:
        """Which of the plans' images the tower must look at; of equal ones, the first."""
        keys = [self._key(plan) for plan in plans]
        return [i for i, key in enumerate(keys) if key not in keys[:i] and self.cache.get(key) is None]

    def run(
        self, plans: Sequence[Plan], looked: Sequence[tuple[Plan, ImageTokens]], device: torch.device
    ) -> list[tuple[Tensor, Tensor]]:
        """For each plan, the kept vision tokens (kept, d) and their places in the unpruned sequence (kept,).

        looked: tower outputs of the images that were `missing`.
        """
        fresh = {self._key(plan): image for plan, image in looked}
        images = []
        for plan in plans:
            key = self._key(plan)
            stored = self.cache.peek(key)
            images.append(fresh[key] if stored is None else stored.to(device))
        for key, image in fresh.items():
            if self.cache.fits(image):
                self.cache.put(key, image.to("cpu"))
        chosen: dict[int, tuple[Tensor, Tensor]] = {}
        for method, parameters in dict.fromkeys((plan.method, plan.parameters) for plan in plans):
            members = [i for i, plan in enumerate(plans) if (plan.method, plan.parameters) == (method, parameters)]
            pruner = get_pruner(method, **{**self.architecture.pruner_params, **dict(parameters)})
            results = self._select(pruner, [plans[i] for i in members], [images[i] for i in members])
            chosen |= dict(zip(members, results, strict=True))
        return [chosen[i] for i in range(len(plans))]

    def _select(
        self, pruner: Pruner, plans: Sequence[Plan], images: Sequence[ImageTokens]
    ) -> list[tuple[Tensor, Tensor]]:
        """One call of the method for every part of every image."""
        started = time.perf_counter()
        texts = self._texts([plan.question for plan in plans], images[0].tokens.device)
        inputs, counts = [], []
        layouts = [pruned_layout(image.layout, plan.recipe, pruner) for plan, image in zip(plans, images, strict=True)]
        for plan, image, layout, text in zip(plans, images, layouts, texts, strict=True):
            parts = parts_to_prune(image, pruner, text if pruner.uses_text else None, plan.seed, layout)
            inputs += parts
            counts += [layout.share(plan.budget)] * len(parts)
        selections = iter(self._choose(pruner, inputs, counts))
        chosen = [[next(selections) for _ in layout.parts] for layout in layouts]
        # One transfer for all images: each would make the host wait for the device.
        picked = [selection.indices for mine in chosen for selection in mine]
        picks = iter(torch.cat(picked).cpu().split([len(indices) for indices in picked]))
        results = []
        elapsed = (time.perf_counter() - started) * 1e3 / len(plans)
        for plan, image, layout, mine in zip(plans, images, layouts, chosen, strict=True):
            positions = layout.positions([next(picks) for _ in mine])
            if len(positions) != plan.kept:
                raise RuntimeError(f"{plan.method} kept {len(positions)} tokens where the plan promised {plan.kept}")
            coverage = sum(selection.coverage for selection in mine) / len(mine)
            self.recent[plan.digest] = Chosen(tuple(positions.tolist()), coverage, elapsed)
            results.append((image.at(positions), positions))
        return results

    def _choose(self, pruner: Pruner, inputs: Sequence[PruneInput], counts: Sequence[int]) -> list[Selection]:
        """An exception here would end vLLM's engine for all its requests, so numbers that overflowed count as zero."""
        try:
            return pruner.choose(inputs, counts)
        except ValueError as error:
            log.warning("a vision tower returned NaN or infinity, which count as zero in this selection: %s", error)
            return pruner.choose([_finite(one) for one in inputs], counts)

    def _texts(self, questions: Sequence[Sequence[int]], device: torch.device) -> list[Tensor | None]:
        """Input embeddings of every question's words, looked up together."""
        ids = [token for question in questions for token in question]
        if not ids:
            return [None] * len(questions)
        embedded = self._embed(torch.tensor(ids, device=device))
        return [text if len(text) else None for text in embedded.split([len(question) for question in questions])]

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
    tensors: dict[str, Any] = {name: value for name, value in vars(image).items() if isinstance(value, Tensor)}
    return replace(image, **{name: tensor.nan_to_num(0.0, 0.0, 0.0) for name, tensor in tensors.items()})
