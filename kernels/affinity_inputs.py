"""The checked inputs of one affinity call, as every backend receives them."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class AffinityInputs:
    """Always batched: text (B, m, d) with m > 0 or None, tokens (B, n, d), features (B, n, d_v) or None.

    text_lengths, token_lengths: (B,) int64 on the tensors' device. ragged: whether any item may be padded.
    """

    text: Tensor | None
    tokens: Tensor
    features: Tensor | None
    text_lengths: Tensor
    token_lengths: Tensor
    ragged: bool
    tau_text: float
    tau_vision: float
    alpha: float
    check_finite: bool
