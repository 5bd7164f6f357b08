"""A request's pruning policy applied to its images: budgets to counts, counts to kept positions and a report."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from covervlm.pruners import PruneInput, Pruner, Selection, get_pruner
from covervlm.pruners.registry import nested_pruner_names
from covervlm.server.engines.base import GenerationRequest, ImageReport, InvalidRequest, PruningPolicy
from covervlm.server.models.base import ImageTokens, Kept


def pruner_for(policy: PruningPolicy, params: Mapping[str, float]) -> Pruner:
    """The policy's method with the architecture's parameters; InvalidRequest where it cannot do what is asked."""
    try:
        pruner = get_pruner(policy.method, **params)
    except ValueError as error:
        raise InvalidRequest(str(error), param="vision_pruning.method") from None
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


def select(
    policy: PruningPolicy, pruner: Pruner, images: Sequence[ImageTokens], text: Tensor | None, seed: int = 0
) -> tuple[list[Kept], list[ImageReport]]:
    """Choose the kept positions of every image of one request.

    text: (m, d) embeddings of the guiding words, or None. A budget that covers an image leaves it exactly unpruned.
    An image of several regions spreads its budget evenly over them, at least one token each.
    """
    budgets = [budget_of(policy, i, len(images), _prunable(image)) for i, image in enumerate(images)]
    kept, reports = [], []
    for image, budget in zip(images, budgets, strict=True):
        started = time.perf_counter()
        whole = not policy.prunes or (policy.coverage is None and budget >= _prunable(image))
        if whole:
            kept.append(Kept(image))
            report = ImageReport(total=len(image), kept=len(image), method="none", coverage=1.0)
            positions = torch.arange(len(image))
        else:
            selections = _choose(policy, pruner, image, budget, text, seed)
            positions = torch.cat(
                [region.positions[s.indices] for region, s in zip(image.regions, selections, strict=True)]
            )
            positions = positions.sort().values
            kept.append(Kept(image, positions))
            report = ImageReport(
                total=len(image),
                kept=len(positions),
                method=policy.method,
                coverage=sum(s.coverage for s in selections) / len(selections),
                milliseconds=(time.perf_counter() - started) * 1e3,
            )
        if policy.return_indices:
            report = replace(report, indices=tuple(positions.tolist()), grid=image.grid)
        reports.append(report)
    return kept, reports


def _prunable(image: ImageTokens) -> int:
    """Tokens that a budget counts: newline tokens between rows of tiles belong to no region."""
    return sum(len(region.positions) for region in image.regions)


def _choose(
    policy: PruningPolicy, pruner: Pruner, image: ImageTokens, budget: int, text: Tensor | None, seed: int
) -> list[Selection]:
    inputs = [
        PruneInput(
            tokens=image.tokens[region.positions],
            features=region.features,
            text=text if pruner.uses_text else None,
            allowed=region.allowed,
            grid=region.grid,
            cls_attention=region.cls_attention,
            seed=seed,
        )
        for region in image.regions
    ]
    if policy.coverage is None:
        return pruner.choose(inputs, max(1, budget // len(inputs)))
    low, high = (
        None if bound is None else max(1, bound // len(inputs)) for bound in (policy.min_tokens, policy.max_tokens)
    )
    return pruner.choose_for_coverage(inputs, policy.coverage, min_tokens=low, max_tokens=high)
