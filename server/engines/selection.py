"""A request's pruning policy applied to its images: budgets to counts, counts to kept positions and a report."""

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from covervlm.pruners import PruneInput, Pruner, get_pruner, pruner_names
from covervlm.pruners.registry import nested_pruner_names
from covervlm.server.engines.base import GenerationRequest, ImageReport, InvalidRequest, PruningPolicy
from covervlm.server.models.base import ImageTokens, Kept


def methods_for(has_cls_token: bool) -> tuple[str, ...]:
    """Names of the methods that work on a vision tower with or without a CLS token."""
    return tuple(name for name in pruner_names() if has_cls_token or not get_pruner(name).uses_cls_attention)


def pruner_for(policy: PruningPolicy, params: Mapping[str, float], *, has_cls_token: bool = True) -> Pruner:
    """The policy's method with the architecture's parameters; InvalidRequest where it cannot do what is asked."""
    try:
        pruner = get_pruner(policy.method, **params)
    except ValueError as error:
        raise InvalidRequest(str(error), param="vision_pruning.method") from None
    if pruner.uses_cls_attention and not has_cls_token:
        raise InvalidRequest(
            f"{policy.method} needs a vision tower with a CLS token, which this model lacks; "
            f"choose one of {', '.join(methods_for(has_cls_token))}.",
            param="vision_pruning.method",
        )
    if policy.coverage is not None and not pruner.nested:
        raise InvalidRequest(
            f"{policy.method} picks tokens in no order, so it has no smallest set that reaches a coverage; "
            f"use keep_tokens or keep_ratio, or one of {', '.join(nested_pruner_names())}.",
            param="vision_pruning.coverage",
        )
    return pruner


def guiding_text(request: GenerationRequest) -> str:
    """The text whose words guide the selection, by the policy's `guide`."""
    spoken = [message.text for message in request.messages if message.role == "user"]
    if not spoken:
        return ""
    match request.pruning.guide:
        case "last_user":
            return spoken[-1]
        case "first_user":
            return spoken[0]
        case "all_user":
            return "\n".join(spoken)
        case "agent":
            return f"{spoken[-1]}\n{request.hint}"
        case "none":
            return ""


def budget_of(policy: PruningPolicy, image: int, images: int, total: int) -> int:
    """How many of an image's `total` tokens the policy keeps: at least 1, at most all.

    A ratio rounds to the nearest count. Raises InvalidRequest where a list of counts does not match the images.
    """
    if policy.keep_tokens is not None:
        counts = policy.keep_tokens
        if not isinstance(counts, int):
            if len(counts) != images:
                raise InvalidRequest(
                    f"keep_tokens lists {len(counts)} counts for {images} images; give one per image, or one number.",
                    param="vision_pruning.keep_tokens",
                )
            counts = counts[image]
        return min(counts, total)
    if policy.keep_ratio is not None:
        return max(1, round(policy.keep_ratio * total))
    return total


class Selector:
    """Applies policies to images, and remembers the selections that no question can change.

    Those are of methods that do not read the text, and of requests without guiding words; they live as long as the
    image's tower outputs do. Used by one thread.
    """

    def __init__(self) -> None:
        self._remembered: WeakKeyDictionary[ImageTokens, dict[Hashable, tuple[Tensor, float]]] = WeakKeyDictionary()

    def select(
        self, policy: PruningPolicy, pruner: Pruner, images: Sequence[ImageTokens], text: Tensor | None, seed: int = 0
    ) -> tuple[list[Kept], list[ImageReport]]:
        """Choose the kept positions of every image of one request.

        text: (m, d) embeddings of the guiding words, or None. A budget that covers an image leaves it exactly unpruned.
        An image of several regions spreads its budget evenly over them, at least one token each.
        """
        if not pruner.uses_text or text is None or not len(text):
            text = None
        kept, reports = [], []
        for i, image in enumerate(images):
            started = time.perf_counter()
            prunable = sum(len(region.positions) for region in image.regions)
            budget = budget_of(policy, i, len(images), prunable)
            if not policy.prunes or (policy.coverage is None and budget >= prunable):
                kept.append(Kept(image))
                report = ImageReport(total=len(image), kept=len(image), method="none", coverage=1.0)
            else:
                positions, coverage = self._positions(policy, pruner, image, budget, text, seed)
                kept.append(Kept(image, positions))
                elapsed = (time.perf_counter() - started) * 1e3
                report = ImageReport(len(image), len(positions), policy.method, coverage, milliseconds=elapsed)
            if policy.return_indices:
                chosen = kept[-1].positions
                indices = range(len(image)) if chosen is None else chosen.tolist()
                report = replace(report, indices=tuple(indices), grid=image.grid, box=image.box)
            reports.append(report)
        return kept, reports

    def _positions(
        self, policy: PruningPolicy, pruner: Pruner, image: ImageTokens, budget: int, text: Tensor | None, seed: int
    ) -> tuple[Tensor, float]:
        """Kept positions, ascending, and the mean coverage of the image's regions."""
        if text is not None:
            return _choose(policy, pruner, image, budget, text, seed)
        of_image = self._remembered.setdefault(image, {})
        key = (pruner, budget, policy.coverage, policy.min_tokens, policy.max_tokens, seed)
        if key not in of_image:
            of_image[key] = _choose(policy, pruner, image, budget, None, seed)
        return of_image[key]


def _choose(
    policy: PruningPolicy, pruner: Pruner, image: ImageTokens, budget: int, text: Tensor | None, seed: int
) -> tuple[Tensor, float]:
    inputs = [
        PruneInput(
            tokens=image.tokens[region.positions],
            features=region.features,
            text=text,
            allowed=region.allowed,
            grid=region.grid,
            cls_attention=region.cls_attention,
            # Crops of equal size would otherwise all get the same random pattern.
            seed=seed + i,
        )
        for i, region in enumerate(image.regions)
    ]

    def share(count: int) -> int:
        return max(1, count // len(inputs))

    if policy.coverage is None:
        selections = pruner.choose(inputs, share(budget))
    else:
        low, high = (None if bound is None else share(bound) for bound in (policy.min_tokens, policy.max_tokens))
        selections = pruner.choose_for_coverage(inputs, policy.coverage, min_tokens=low, max_tokens=high)
    chosen = zip(image.regions, selections, strict=True)
    positions = torch.cat([region.positions[selection.indices] for region, selection in chosen])
    return positions.sort().values, sum(selection.coverage for selection in selections) / len(selections)
