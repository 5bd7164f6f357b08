"""A pruning method: what it is given, what it returns, and the objective that measures its choice.

A method implements `pick` alone. Checks, edge rules and the coverage that every method reports are here.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from covervlm.kernels import coverage_affinity, greedy_max_coverage

Rows = Literal["all", "text", "vision"]


@dataclass(frozen=True, eq=False)
class PruneInput:
    """One image, or one crop of an image, as the pruning methods see it.

    tokens: (n, d) projector outputs, any float dtype.
    features: (n, d_v) vision features before the projector, any float dtype.
    text: (m, d) input embeddings of the question's words; None or m = 0 where there is no question.
    allowed: (n,) bool, False for patches that hold padding only; None means all are allowed.
    grid: (rows, columns) with rows * columns = n, tokens in raster order; None where there is no grid.
    cls_attention: (n,) attention of the CLS token, averaged over heads; present only if the method asks for it.
    clip_cosines: (n,) cosine of every patch to the question in CLIP's shared space; present only if the method asks for
        it, and there is a question.
    seed: randomness that a method may draw on, so that a selection depends on its request alone.
    """

    tokens: Tensor
    features: Tensor
    text: Tensor | None = None
    allowed: Tensor | None = None
    grid: tuple[int, int] | None = None
    cls_attention: Tensor | None = None
    clip_cosines: Tensor | None = None
    seed: int = 0

    @property
    def places(self) -> Tensor:
        """(allowed tokens,) int64, ascending: where the tokens that may be kept stand."""
        if self.allowed is None:
            return torch.arange(len(self.tokens), device=self.tokens.device)
        return self.allowed.nonzero().flatten()


@dataclass(frozen=True, eq=False)
class Selection:
    """What a method keeps of one input.

    indices: (k,) int64, ascending, so that kept tokens stay in raster order.
    coverage: objective(kept) / objective(everything that may be kept), in [0, 1]; the objective is MMTok's
        (arXiv 2508.18264), for every method, over the text that the method was shown and the image itself.
    """

    indices: Tensor
    coverage: float


class Objective:
    """objective(S) = sum over rows of the largest affinity in the columns S (arXiv 2508.18264, section 3).

    Inputs of equal shape share one batch, so that crops and video frames take one kernel call together.
    """

    def __init__(self, images: Sequence[PruneInput], *, tau_text: float, tau_vision: float, alpha: float) -> None:
        self._images = images
        self._batches: list[tuple[list[int], Tensor]] = []
        shapes: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            shapes.setdefault((_words(image), len(image.tokens)), []).append(i)
        for (words, _), members in shapes.items():
            affinity = coverage_affinity(
                torch.stack([text for i in members if (text := images[i].text) is not None]) if words else None,
                torch.stack([images[i].tokens for i in members]),
                torch.stack([images[i].features for i in members]),
                tau_text=tau_text,
                tau_vision=tau_vision,
                alpha=alpha,
                check_finite=False,
            )
            self._batches.append((members, affinity))

    def maximise(self, counts: Sequence[int], rows: Rows = "all") -> list[Tensor]:
        """Greedy picks of every input, (count,) int64 in pick order, over all rows or one kind of them.

        Without text there are vision rows only, and they stand in for text rows.
        """
        orders: dict[int, Tensor] = {}
        for members, affinity in self._batches:
            words = _words(self._images[members[0]])
            if words and rows != "all":
                affinity = affinity[:, :words] if rows == "text" else affinity[:, words:]
            picks = greedy_max_coverage(
                affinity, [counts[i] for i in members], allowed=self._allowed(members), check_finite=False
            )
            orders |= {i: order[: counts[i]] for i, order in zip(members, picks, strict=True)}
        return [orders[i] for i in range(len(self._images))]

    def coverage(self, orders: Sequence[Tensor]) -> list[list[float]]:
        """For every input, objective(first picks) / objective(all allowed tokens) after each pick, in float64."""
        curves: dict[int, list[float]] = {}
        for members, affinity in self._batches:
            for i, matrix in zip(members, affinity, strict=True):
                reached = matrix[:, orders[i]].cummax(dim=1).values.sum(dim=0, dtype=torch.float64)
                allowed = self._images[i].allowed
                best = matrix.amax(dim=1) if allowed is None else matrix[:, allowed].amax(dim=1)
                curves[i] = (reached / best.sum(dtype=torch.float64)).clamp(max=1.0).tolist()
        return [curves[i] for i in range(len(self._images))]

    def _allowed(self, members: Sequence[int]) -> Tensor | None:
        masks = [self._images[i].allowed for i in members]
        if all(mask is None for mask in masks):
            return None
        full = torch.ones(len(self._images[members[0]].tokens), dtype=torch.bool)
        return torch.stack(
            [full.to(self._images[members[0]].tokens.device) if mask is None else mask for mask in masks]
        )


@dataclass(frozen=True)
class Pruner:
    """A pruning method. Subclasses are frozen dataclasses whose further fields are the method's own parameters.

    Requests may set them: numbers, texts or booleans with defaults, within the bounds of their annotations.

    tau_text, tau_vision, alpha: parameters of the MMTok objective, which every method reports as its coverage and
    the coverage methods maximise; all positive.

    A subclass sets the class attributes below where they differ and implements `pick`.
    """

    tau_text: Annotated[float, Ge(0.001), Le(100)] = 0.02
    tau_vision: Annotated[float, Ge(0.001), Le(100)] = 0.2
    alpha: Annotated[float, Ge(0.001), Le(1000)] = 0.5

    uses_text: ClassVar[bool] = False
    """Whether the choice depends on the question; if not, one image's selection serves every question."""
    uses_cls_attention: ClassVar[bool] = False
    """Whether `PruneInput.cls_attention` must be present."""
    nested: ClassVar[bool] = True
    """Whether `pick` with a smaller count returns the first picks of a larger one, as a coverage budget needs."""
    scales_pictures: ClassVar[bool] = False
    """Whether a budget is met by a smaller picture, of which the method keeps all."""
    joins_crops: ClassVar[bool] = False
    """Whether the method's release picks over all crops of an image at once, which the released recipe follows."""

    @property
    def uses_clip(self) -> bool:
        """Whether `PruneInput.clip_cosines` must be present beside a question's words."""
        return False

    def __post_init__(self) -> None:
        for name in ("tau_text", "tau_vision", "alpha"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)!r}")

    def pick(self, inputs: Sequence[PruneInput], counts: Sequence[int], objective: Objective) -> list[Tensor]:
        """The (count,) int64 picks of every input in pick order, distinct and allowed. This is all a method writes.

        Counts are at least 1 and at most the number of allowed tokens; `allowed` is None where it excludes nothing.
        objective: MMTok's objective for the same inputs, for methods that build on it.
        """
        raise NotImplementedError

    def choose(self, inputs: Sequence[PruneInput], keep: int | Sequence[int]) -> list[Selection]:
        """Choose `keep` tokens of every input (one count for all, or one per input).

        n <= keep keeps everything. With fewer allowed tokens than keep, all allowed ones are kept; with none allowed,
        `allowed` is ignored. Raises ValueError naming what is wrong with the inputs or with keep.
        """
        counts = _counts(keep, len(inputs))
        images = [_checked(self, image, i) for i, image in enumerate(inputs)]
        selections = [_everything(image, count) for image, count in zip(images, counts, strict=True)]
        pruned = [i for i, selection in enumerate(selections) if len(selection.indices) > counts[i]]
        runs = self._run([images[i] for i in pruned], [counts[i] for i in pruned])
        for i, (order, curve) in zip(pruned, runs, strict=True):
            selections[i] = Selection(order.sort().values, curve[-1])
        return selections

    def choose_for_coverage(
        self,
        inputs: Sequence[PruneInput],
        share: float,
        *,
        min_tokens: int | None = None,
        max_tokens: int | None = None,
    ) -> list[Selection]:
        """Choose, for every input, the method's first picks up to the one that brings coverage to `share`.

        share: in (0, 1]; the count that it leads to is clipped to [min_tokens, max_tokens] where given. One run of
        the method serves all counts, since picks are nested and the objective grows with every pick. Raises
        ValueError for a method whose picks are not nested.
        """
        if not self.nested:
            raise ValueError(f"{type(self).__name__} picks in no order, so it takes no coverage budget; set a count")
        if not 0 < share <= 1:
            raise ValueError(f"coverage must be in (0, 1], got {share!r}")
        low = 1 if min_tokens is None else _counts(min_tokens, 1)[0]
        if max_tokens is not None and _counts(max_tokens, 1)[0] < low:
            raise ValueError(f"min_tokens {low} exceeds max_tokens {max_tokens}")
        images = [_checked(self, image, i) for i, image in enumerate(inputs)]
        selections = [_everything(image, low) for image in images]
        pruned = [i for i, selection in enumerate(selections) if len(selection.indices) > low]
        sizes = [len(selections[i].indices) for i in pruned]
        limits = [size if max_tokens is None else min(size, max_tokens) for size in sizes]
        for i, (order, curve) in zip(pruned, self._run([images[i] for i in pruned], limits), strict=True):
            reached = bisect_left(curve, share - 1e-9) + 1
            count = min(max(reached, low), len(order))
            selections[i] = Selection(order[:count].sort().values, curve[count - 1])
        return selections

    def select(self, inputs: Sequence[PruneInput], keep: int | Sequence[int]) -> list[Tensor]:
        """The indices of `choose` alone: one ascending int64 tensor per input."""
        return [selection.indices for selection in self.choose(inputs, keep)]

    def _run(self, images: Sequence[PruneInput], counts: Sequence[int]) -> list[tuple[Tensor, list[float]]]:
        """Picks in pick order, with the coverage reached after each of them."""
        if not images:
            return []
        objective = Objective(images, tau_text=self.tau_text, tau_vision=self.tau_vision, alpha=self.alpha)
        orders = self.pick(images, counts, objective)
        return list(zip(orders, objective.coverage(orders), strict=True))


def highest(scores: Tensor, count: int, allowed: Tensor | None = None) -> Tensor:
    """The `count` allowed indices with the highest scores (n,), best first, the lowest index on ties."""
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return scores.sort(descending=True, stable=True).indices[:count]


def _everything(image: PruneInput, keep: int) -> Selection:
    """The whole input where `keep` has room for it, else all that is allowed."""
    n = len(image.tokens)
    if image.allowed is None or n <= keep:
        return Selection(torch.arange(n, device=image.tokens.device), 1.0)
    return Selection(image.allowed.nonzero().flatten(), 1.0)


def _counts(keep: int | Sequence[int], inputs: int) -> list[int]:
    """One positive count per input."""
    counts = list(keep) if isinstance(keep, Sequence) else [keep] * inputs
    if len(counts) != inputs:
        raise ValueError(f"keep holds {len(counts)} counts for {inputs} inputs")
    for count in counts:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"keep must be a whole number of at least 1, got {count!r}")
    return counts


def _checked(pruner: Pruner, image: PruneInput, i: int) -> PruneInput:
    """The input with `allowed` dropped where it excludes nothing or everything; ValueError where it is malformed."""
    n = image.tokens.shape[0]
    shapes: list[tuple[str, Tensor | None, tuple[int | None, ...]]] = [
        ("tokens", image.tokens, (None, None)),
        ("features", image.features, (n, None)),
        ("text", image.text, (None, image.tokens.shape[-1])),
        ("cls_attention", image.cls_attention, (n,)),
        ("clip_cosines", image.clip_cosines, (n,)),
        ("allowed", image.allowed, (n,)),
    ]
    for name, tensor, shape in shapes:
        if tensor is None:
            continue
        got = tuple(tensor.shape)
        if len(got) != len(shape) or any(want not in (None, size) for want, size in zip(shape, got, strict=True)):
            wanted = ", ".join("*" if size is None else str(size) for size in shape)
            raise ValueError(f"{name} of input {i} has shape {got}, expected ({wanted})")
        # The sum is the cheaper check: it is finite only if all terms are. It may overflow, so the terms decide.
        if not tensor.sum(dtype=torch.float32).isfinite() and not tensor.isfinite().all():
            raise ValueError(f"{name} of input {i} contains NaN or infinity")
    if n == 0:
        raise ValueError(f"input {i} has no tokens")
    if image.grid is not None and image.grid[0] * image.grid[1] != n:
        raise ValueError(f"grid {image.grid} of input {i} does not hold {n} tokens")
    if pruner.uses_cls_attention and image.cls_attention is None:
        raise ValueError(f"{type(pruner).__name__} needs cls_attention, which input {i} lacks")
    if pruner.uses_clip and _words(image) and image.clip_cosines is None:
        raise ValueError(f"{type(pruner).__name__} needs clip_cosines, which input {i} lacks")
    if image.allowed is not None:
        if image.allowed.dtype != torch.bool:
            raise ValueError(f"allowed of input {i} has dtype {image.allowed.dtype}, expected torch.bool")
        if int(image.allowed.sum()) in (0, n):
            return replace(image, allowed=None)
    return image


def _words(image: PruneInput) -> int:
    return 0 if image.text is None else len(image.text)
