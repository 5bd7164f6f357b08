"""MMTok's objective for the inputs of one call: how well kept tokens cover the question's words and the image."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from covervlm.kernels import coverage_affinity, greedy_max_coverage
from covervlm.pruners.inputs import PruneInput

Rows = Literal["all", "text", "vision"]


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


def _words(image: PruneInput) -> int:
    return 0 if image.text is None else len(image.text)
