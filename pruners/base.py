"""The interface of a pruning method: tensors of one image in, indices of the kept tokens out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True, eq=False)
class PruneInput:
    """One image, or one crop of an image, as the pruning methods see it.

    tokens: (n, d) projector outputs, any float dtype.
    features: (n, d_v) vision features before the projector, any float dtype.
    text: (m, d) input embeddings of the question's words; None or m = 0 where there is no question.
    allowed: (n,) bool, False for patches that hold padding only; None means all are allowed.
    grid: (rows, columns) with rows * columns = n, tokens in raster order; None where there is no grid.
    cls_attention: (n,) attention of the CLS token, averaged over heads; present only if the method asks for it.
    seed: randomness that a method may draw on, so that a selection depends on its request alone.
    """

    tokens: Tensor
    features: Tensor
    text: Tensor | None = None
    allowed: Tensor | None = None
    grid: tuple[int, int] | None = None
    cls_attention: Tensor | None = None
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Selection:
    """What a method keeps of one input.

    indices: (k,) int64, ascending, so that kept tokens stay in raster order.
    coverage: share of the MMTok objective that the kept set reaches, in [0, 1].
    """

    indices: Tensor
    coverage: float


class Pruner:
    """A pruning method. Subclasses are frozen dataclasses whose fields are the method's parameters.

    A subclass sets the class attributes below and implements `choose`.
    """

    uses_text: ClassVar[bool] = False
    """Whether the choice depends on the question; if not, one image's selection serves every question."""
    uses_cls_attention: ClassVar[bool] = False
    """Whether `PruneInput.cls_attention` must be present."""

    def choose(self, inputs: Sequence[PruneInput], keep: int | Sequence[int]) -> list[Selection]:
        """Choose `keep` tokens of every input (one count for all, or one per input).

        n <= keep keeps everything. With fewer allowed tokens than keep, all allowed ones are kept; with none allowed,
        `allowed` is ignored. Raises ValueError naming what is wrong with the inputs or with keep.
        """
        raise NotImplementedError

    def select(self, inputs: Sequence[PruneInput], keep: int | Sequence[int]) -> list[Tensor]:
        """The indices of `choose` alone: one ascending int64 tensor per input."""
        return [selection.indices for selection in self.choose(inputs, keep)]
