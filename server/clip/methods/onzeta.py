"""OnZeta: zero-shot labels for a stream of images, each answered at once, learned from and not kept."""

import math
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from covervlm.server.clip.methods.contracts import Moved, Stream, check_text

MOST_RHO = 1e9
MOST_OBSERVED = 10**15
"""More than any stream reaches."""


@dataclass(frozen=True, eq=False)
class OnlinePrediction:
    """The answer to one image: class distributions of shape (K,), each summing to 1.

    text: from the text proxies under the balanced class prior. vision: from the proxies learned so far.
    combined: the mixture of both that labels the image. index: the image's place in the stream, from 0.
    """

    index: int
    text: Tensor
    vision: Tensor
    combined: Tensor

    @property
    def label(self) -> int:
        return int(self.combined.argmax())


@dataclass(frozen=True, eq=False)
class OnlineState:
    """All that a stream leaves behind: dual variables (K,), vision proxies (d, K), and how many images were seen."""

    rho: Tensor
    vision_proxies: Tensor
    observed: int


@dataclass(frozen=True)
class OnZeta(Stream):
    """Labels each image at once and learns from it; the prior over classes is kept balanced (arXiv 2408.13320).

    Every class is expected to get `alpha` of an equal share of the images: 1 is the paper's balance, 0 none.
    """

    state: ClassVar[type] = OnlineState

    tau_text: Annotated[float, Ge(1e-3), Le(10)] = 0.01
    tau_vision: Annotated[float, Ge(1e-3), Le(10)] = 0.04
    beta: Annotated[float, Ge(0), Le(1)] = 0.8
    learning_rate: Annotated[float, Gt(0), Le(1000)] = 0.5
    learning_rate_rho: Annotated[float, Ge(0), Le(10_000)] = 20.0
    alpha: Annotated[float, Ge(0), Le(1)] = 1.0

    def open(self, text: Tensor, horizon: int) -> "OnlineZeroShot":
        return OnlineZeroShot(text, horizon, **asdict(self))


class OnlineZeroShot:
    """A classifier that is updated by every image it labels; one instance serves one stream, from one thread at a time.

    text_proxies: (d, K) with normalised columns. horizon: the expected length n of the stream. It sets how
    quickly trust moves from the text to the learned proxies: the learned share of image i is beta * sqrt((i + 1) / n).
    Past the horizon the stream goes on: the share stays at beta, and step sizes keep falling with 1 / sqrt(i + 1).
    OnZeta (arXiv 2408.13320), algorithm 1. ValueError for a horizon below 1 or proxies that do not fit.
    """

    def __init__(
        self,
        text_proxies: Tensor,
        horizon: int,
        *,
        tau_text: float = 0.01,
        tau_vision: float = 0.04,
        beta: float = 0.8,
        learning_rate: float = 0.5,
        learning_rate_rho: float = 20.0,
        alpha: float = 1.0,
    ) -> None:
        check_text(text_proxies)
        if horizon < 1:
            raise ValueError("the horizon must be at least 1")
        self.horizon = horizon
        self.tau_text = tau_text
        self.tau_vision = tau_vision
        self.beta = beta
        self.learning_rate = learning_rate
        self.learning_rate_rho = learning_rate_rho
        self.alpha = alpha
        self._text = text_proxies.contiguous()
        self._vision = self._text.clone()
        self._rho = text_proxies.new_zeros(text_proxies.shape[1])
        self._observed = 0

    @property
    def observed(self) -> int:
        """How many images the state holds."""
        return self._observed

    @torch.no_grad()
    def observe(self, feature: Tensor) -> OnlinePrediction:
        """Label one image, then learn from it. feature: (d,), L2-normalised, in the proxies' dtype.

        ValueError, and no update, where its size or values do not fit.
        """
        if feature.shape != self._text.shape[:1]:
            raise ValueError(f"expected {self._text.shape[0]} dimensions, got {tuple(feature.shape)}")
        text_scores = feature @ self._text
        if not math.isfinite(float(text_scores.sum())):
            raise ValueError("the image's feature holds values that are not finite")
        seen = self._observed + 1
        root = math.sqrt(seen)

        # The same as softmax(scores / tau) * exp(rho), made to sum to 1, which would overflow.
        text = torch.softmax(text_scores / self.tau_text + self._rho, dim=0)
        self._rho.sub_((text - self.alpha / len(text)).mul_(self.learning_rate_rho / root)).clamp_min_(0)

        vision = torch.softmax((feature @ self._vision).div_(self.tau_vision), dim=0)
        share = self.beta * min(1.0, math.sqrt(seen / self.horizon))
        combined = share * vision + (1 - share) * text

        # Sums are taken in this order on purpose: the update amplifies rounding, and late answers depend on it.
        step = self.learning_rate / root / self.tau_vision
        self._vision.sub_(torch.outer(feature, vision - text).mul_(step))
        self._vision.div_(column_lengths(self._vision).clamp_min_(1e-12))
        self._observed = seen
        return OnlinePrediction(index=seen - 1, text=text, vision=vision, combined=combined)

    def observe_all(self, features: Tensor) -> list[OnlinePrediction]:
        """Images (n, d), one after another."""
        return [self.observe(feature) for feature in features]

    def moved(self) -> Moved:
        return Moved.of(self._vision, self._text)

    def snapshot(self) -> OnlineState:
        """A copy of the state, which later images do not touch."""
        return OnlineState(self._rho.clone(), self._vision.clone(), self._observed)

    def check(self, state: OnlineState) -> None:
        """ValueError where `state` was taken with other classes or dimensions, or is damaged."""
        if state.vision_proxies.shape != self._vision.shape or state.rho.shape != self._rho.shape:
            raise ValueError("the state belongs to other classes or dimensions")
        unit = ((column_lengths(state.vision_proxies.to(self._vision)) - 1).abs() < 1e-3).all()
        balanced = ((state.rho >= 0) & (state.rho < MOST_RHO)).all()
        if not bool(unit & balanced) or not 0 <= state.observed < MOST_OBSERVED:
            raise ValueError("the state is damaged")

    def restore(self, state: OnlineState) -> None:
        """Go on from `state`; ValueError, and no change, where it does not fit."""
        self.check(state)
        self._rho.copy_(state.rho)
        self._vision.copy_(state.vision_proxies)
        self._observed = state.observed


def column_lengths(matrix: Tensor) -> Tensor:
    """(K,) the lengths of the columns of a matrix (d, K), in its dtype, with squares added up row by row on a CPU.

    torch's own norm goes down one column after the other, which takes five times as long.
    """
    if matrix.device.type != "cpu":  # where sums that meet in one row may come in any order
        return torch.linalg.vector_norm(matrix, dim=0)
    one_row = torch.zeros(len(matrix), dtype=torch.int64, device=matrix.device)
    squares = matrix.new_zeros(1, matrix.shape[1]).index_add_(0, one_row, matrix.square())
    # torch's square roots of whole float32 tensors are not rounded to the nearest number.
    return squares[0].double().sqrt().to(matrix.dtype)
