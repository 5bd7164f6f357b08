"""SCOPE: keep salient tokens that cover what the others do not (arXiv 2510.24214)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from covervlm.kernels import greedy_max_coverage
from covervlm.pruners.base import Objective, PruneInput, Pruner


@dataclass(frozen=True)
class Scope(Pruner):
    """Greedy picks by coverage gain times the CLS token's attention, the lowest index on ties.

    What a set covers of a token is its largest cosine similarity to the set, of vision features, and at least 0.
    """

    uses_cls_attention: ClassVar[bool] = True

    def pick(self, inputs: Sequence[PruneInput], counts: Sequence[int], objective: Objective) -> list[Tensor]:
        picks = []
        for image, count in zip(inputs, counts, strict=True):
            features = normalize(image.features.float(), dim=1, eps=1e-8)
            picks.append(
                greedy_max_coverage(
                    features @ features.T,
                    count,
                    allowed=image.allowed,
                    weights=image.cls_attention,
                    check_finite=False,
                )
            )
        return picks
