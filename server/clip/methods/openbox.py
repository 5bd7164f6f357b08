"""OpenBox: the exact linear form of a piecewise-linear head around one feature, and how far it holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from covervlm.server.clip.methods.contracts import Explain, Head, Network


@dataclass(frozen=True)
class OpenBox(Explain):
    """The linear function that the head exactly is around the feature (arXiv 1802.06259).

    Evidence: `logits` (K,), `weights` (K, d) and `offsets` (K,) with logits = weights @ feature + offsets,
    `contributions` (K, d) that sum with the offset to the logit, `distance` () to the next facet of the region in which
    this holds, and `states` (H,), which hidden units are on: alike in one region. Exact from the unit feature on.
    """

    def explain(self, head: Head | Network, feature: Tensor) -> Mapping[str, Tensor]:
        if isinstance(head, Head):
            found = region([head.proxies.T / head.temperature], [feature.new_zeros(head.proxies.shape[1])], feature)
        else:
            found = region(head.weights, head.biases, feature)
        return {
            "logits": found.weights @ feature + found.offsets,
            "weights": found.weights,
            "offsets": found.offsets,
            "contributions": found.weights * feature,
            "distance": found.distance(feature),
            "states": found.states,
        }


@dataclass(frozen=True, eq=False)
class Region:
    """The polytope {u: rows @ u <= bounds} in which a network is weights @ u + offsets.

    weights: (C, d), offsets: (C,). rows: (H, d) and bounds: (H,), one for each hidden unit. states: (H,) bool, on.
    """

    weights: Tensor
    offsets: Tensor
    rows: Tensor
    bounds: Tensor
    states: Tensor

    def distance(self, x: Tensor) -> Tensor:
        """() from x (d,) to the nearest facet's hyperplane; infinite where no unit can change."""
        lengths = self.rows.norm(dim=1)
        gaps = (self.rows @ x - self.bounds).abs() / lengths
        return gaps[lengths > 0].min() if bool((lengths > 0).any()) else x.new_tensor(float("inf"))


def region(weights: Sequence[Tensor], biases: Sequence[Tensor], x: Tensor, *, negative_slope: float = 0.0) -> Region:
    """Where a network with leaky ReLU between its layers is linear around x (d,). weights: (out, in) of each layer."""
    matrix = torch.eye(len(x), dtype=x.dtype, device=x.device)
    offset = torch.zeros_like(x)
    rows, bounds, states = [matrix[:0]], [offset[:0]], [torch.zeros(0, dtype=torch.bool, device=x.device)]
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        matrix, offset = weight @ matrix, weight @ offset + bias
        if index == len(weights) - 1:
            break
        on = matrix @ x + offset >= 0
        side = 1 - 2 * on.to(x.dtype)
        rows.append(matrix * side[:, None])
        bounds.append(-offset * side)
        states.append(on)
        slope = torch.where(on, x.new_ones(()), x.new_tensor(negative_slope))
        matrix, offset = matrix * slope[:, None], offset * slope
    return Region(matrix, offset, torch.cat(rows), torch.cat(bounds), torch.cat(states))


def linear_form(
    weights: Sequence[Tensor], biases: Sequence[Tensor], x: Tensor, *, negative_slope: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(C, d) and (C,): what the network is around x (d,), as a linear function. OpenBox (arXiv 1802.06259)."""
    found = region(weights, biases, x, negative_slope=negative_slope)
    return found.weights, found.offsets


def in_words(direction: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients (m,) of words (m, d) whose sum is nearest to direction (d,), and () the share that it misses.

    The share is of the length: 0 where the words explain all of it, 1 where they explain nothing.
    """
    coefficients = torch.linalg.lstsq(words.T, direction[:, None], driver="gelsd").solution.squeeze(1)
    left = (direction - words.T @ coefficients).norm() / direction.norm().clamp_min(torch.finfo(words.dtype).tiny)
    return coefficients, left
