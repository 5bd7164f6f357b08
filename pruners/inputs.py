"""What goes into a pruning method and what comes out: tensors of one image, indices of the kept tokens."""

from dataclasses import dataclass

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
    coverage: objective(kept) / objective(everything that may be kept), in [0, 1]; the objective is MMTok's
        (arXiv 2508.18264), for every method, over the text that the method was shown and the image itself.
    """

    indices: Tensor
    coverage: float
