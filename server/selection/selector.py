"""A request's pruning policy applied to its images: guiding text, budgets to counts, counts to kept positions."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

from cachetools import LRUCache
from torch import Tensor

from covervlm.pruners import PruneInput, Pruner, get_pruner, pruner_names
from covervlm.pruners.registry import pruner_class
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import GenerationRequest, Guide, ImageReport, PruningPolicy, Recipe
from covervlm.server.models.base import ImageTokens, Layout
from covervlm.server.selection.clip_relevance import NO_CLIP
from covervlm.server.selection.parameters import checked

_REMEMBERED = 64
"""Selections kept of one image: requests may ask for any number of seeds and parameters."""


def methods_for(has_cls_token: bool, offered: Sequence[str] = (), *, scales: bool = False) -> tuple[str, ...]:
    """Names of the methods that work on a vision tower with or without a CLS token.

    offered: of all methods those that may be named, beside `none`; all where it is empty. scales: whether pictures can
    be scaled to a budget.
    """
    names = [name for name in pruner_names() if not offered or name in offered or name == "none"]
    classes = {name: pruner_class(name) for name in names}
    return tuple(
        name
        for name, cls in classes.items()
        if (has_cls_token or not cls.uses_cls_attention) and (scales or not cls.scales_pictures)
    )


def pruner_for(
    policy: PruningPolicy,
    params: Mapping[str, float],
    *,
    has_cls_token: bool = True,
    has_clip: bool = False,
    scales: bool = False,
) -> Pruner:
    """The policy's method with the architecture's parameters and, before those, the policy's own.

    has_clip: whether a CLIP checkpoint of the model's tower is there. scales: whether pictures can be scaled to a
    budget. Raises InvalidRequest where the method cannot do what is asked.
    """
    own = checked(policy.method, dict(policy.parameters)) if policy.parameters else {}
    try:
        pruner = get_pruner(policy.method, **{**params, **own})
    except ValueError as error:
        raise InvalidRequest(str(error), param="vision_pruning.method") from None
    if pruner.uses_cls_attention and not has_cls_token:
        raise InvalidRequest(
            f"{policy.method} needs a vision tower with a CLS token, which this model lacks; "
            f"choose one of {', '.join(methods_for(has_cls_token))}.",
            param="vision_pruning.method",
        )
    if pruner.scales_pictures and not scales:
        raise InvalidRequest(
            f"{policy.method} scales pictures until their tokens fit the budget, which the embedded engine does for "
            "models whose tower takes pictures of any size, as Qwen2.5-VL's; "
            f"choose one of {', '.join(methods_for(has_cls_token))}.",
            param="vision_pruning.method",
        )
    if pruner.uses_clip and not has_clip:
        raise InvalidRequest(NO_CLIP, param="vision_pruning.parameters.relevance", code="invalid_value")
    if policy.coverage is not None and not pruner.nested:
        raise InvalidRequest(
            f"{policy.method} picks tokens in no order, so it has no smallest set that reaches a coverage; "
            "use keep_tokens or keep_ratio, or a method that ranks tokens, such as mmtok.",
            param="vision_pruning.coverage",
        )
    return pruner


def guiding_text(request: GenerationRequest) -> str:
    """The text whose words guide the selection: the policy's own `question`, or the user's by its `guide`."""
    policy = request.pruning
    if policy.question is not None:
        return f"{policy.question}\n{request.hint}" if policy.guide == "agent" else policy.question
    turns = [message.text for message in request.messages if message.role == "user"]
    return text_of_turns(policy.guide, turns, request.hint)


def text_of_turns(guide: Guide, turns: Sequence[str], hint: str = "") -> str:
    """The guiding text out of the user's turns; hint: what an agent said."""
    if not turns:
        return ""
    match guide:
        case "last_user":
            return turns[-1]
        case "first_user":
            return turns[0]
        case "all_user":
            return "\n".join(turns)
        case "agent":
            return f"{turns[-1]}\n{hint}"
        case "none":
            return ""


def budget_of(policy: PruningPolicy, image: int, images: int, total: int, crops: int = 1) -> int:
    """How many of an image's `total` tokens the policy keeps: at least 1, at most all.

    crops: how many the image is cut into. A ratio rounds to the nearest count, and down by the released recipe.
    Raises InvalidRequest where a list of counts does not match the images.
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
    if policy.keep_tokens_per_crop is not None:
        return min(policy.keep_tokens_per_crop * crops, total)
    if policy.keep_ratio is not None:
        share = policy.keep_ratio * total
        return max(1, int(share) if policy.recipe == "released" else round(share))
    return total


def pruned_layout(layout: Layout, recipe: Recipe, pruner: Pruner) -> Layout:
    """The parts that the method picks from, each on its own: an image's crops, or all of them at once."""
    return layout.joined if recipe == "released" and pruner.joins_crops else layout


def parts_to_prune(
    image: ImageTokens,
    pruner: Pruner,
    text: Tensor | None,
    seed: int,
    layout: Layout | None = None,
    cosines: Tensor | None = None,
) -> list[PruneInput]:
    """What a method sees of every part of an image, by default of its own layout.

    text: (m, d) embeddings of the guiding words, if it reads any. cosines: (rows,) those of CLIP, if it asks for them.
    """
    inputs = []
    for number, part in enumerate((layout or image.layout).parts):
        device = image.tokens.device
        # Rows ascend, so that a part with all of them is the image as it stands, and nothing is copied.
        rows = slice(None) if len(part.rows) == len(image.tokens) else part.rows.to(device)
        attention = image.cls_attention if pruner.uses_cls_attention else None
        inputs.append(
            PruneInput(
                tokens=image.tokens[rows],
                features=image.features[rows],
                text=text,
                allowed=None if part.allowed is None else part.allowed.to(device),
                grid=part.grid,
                cls_attention=None if attention is None else attention[rows],
                clip_cosines=None if cosines is None else cosines[rows],
                # Crops of equal size would otherwise all get the same random pattern.
                seed=seed + number,
            )
        )
    return inputs


class Selector:
    """Applies policies to images, and remembers the selections that no question can change.

    Those are of methods that do not read the text, and of requests without guiding words; they live as long as the
    image's tower outputs do. Used by one thread.
    """

    def __init__(self) -> None:
        self._remembered: WeakKeyDictionary[ImageTokens, LRUCache[Hashable, tuple[Tensor, float]]]
        self._remembered = WeakKeyDictionary()

    def select(
        self,
        policy: PruningPolicy,
        pruner: Pruner,
        images: Sequence[ImageTokens],
        text: Tensor | None,
        seed: int = 0,
        *,
        cosines: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[list[Tensor | None], list[ImageReport]]:
        """For every image of one request, the positions to keep, (k,) int64 ascending on the CPU, or None for all.

        text: (m, d) embeddings of the guiding words, or None. cosines: of features (rows, d_v) CLIP's to the question,
        (rows,), where the method asks for them. A budget that covers an image leaves it exactly unpruned.
        An image of several parts spreads its budget evenly over them, at least one token each.
        """
        if not pruner.uses_text or text is None or not len(text):
            text = cosines = None
        kept: list[Tensor | None] = []
        reports = []
        for i, image in enumerate(images):
            started = time.perf_counter()
            layout = image.layout
            budget = budget_of(policy, i, len(images), layout.prunable, len(layout.parts))
            if not policy.prunes or (policy.coverage is None and budget >= layout.prunable):
                positions = None
                report = ImageReport(total=layout.total, kept=layout.total, method="none", coverage=1.0)
            else:
                like = None if cosines is None else cosines(image.features)
                positions, coverage = self._positions(policy, pruner, image, budget, text, seed, like)
                elapsed = (time.perf_counter() - started) * 1e3
                report = ImageReport(layout.total, len(positions), policy.method, coverage, milliseconds=elapsed)
            if policy.return_indices:
                indices = range(layout.total) if positions is None else positions.tolist()
                report = replace(report, indices=tuple(indices), grid=layout.grid, box=image.box)
            kept.append(positions)
            reports.append(report)
        return kept, reports

    def _positions(
        self,
        policy: PruningPolicy,
        pruner: Pruner,
        image: ImageTokens,
        budget: int,
        text: Tensor | None,
        seed: int,
        cosines: Tensor | None,
    ) -> tuple[Tensor, float]:
        """Kept positions, and the mean coverage of the image's parts."""
        if text is not None:
            return _choose(policy, pruner, image, budget, text, seed, cosines)
        of_image = self._remembered.setdefault(image, LRUCache(_REMEMBERED))
        key = (pruner, budget, policy.coverage, policy.min_tokens, policy.max_tokens, policy.recipe, seed)
        if (chosen := of_image.get(key)) is None:
            chosen = of_image[key] = _choose(policy, pruner, image, budget, None, seed)
        return chosen


def _choose(
    policy: PruningPolicy,
    pruner: Pruner,
    image: ImageTokens,
    budget: int,
    text: Tensor | None,
    seed: int,
    cosines: Tensor | None = None,
) -> tuple[Tensor, float]:
    layout = pruned_layout(image.layout, policy.recipe, pruner)
    inputs, share = parts_to_prune(image, pruner, text, seed, layout, cosines), layout.share
    if policy.coverage is None:
        selections = pruner.choose(inputs, share(budget))
    else:
        low, high = (None if bound is None else share(bound) for bound in (policy.min_tokens, policy.max_tokens))
        selections = pruner.choose_for_coverage(inputs, policy.coverage, min_tokens=low, max_tokens=high)
    positions = layout.positions([selection.indices.cpu() for selection in selections])
    return positions, sum(selection.coverage for selection in selections) / len(selections)
