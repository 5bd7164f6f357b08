"""The labelling methods side by side, on features and class vectors of any image-text space."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from covervlm.server.clip.methods.inmap import fit_vision_proxies
from covervlm.server.clip.methods.onzeta import OnlineZeroShot

ORDERS = 5
METHODS = ("InMaP", "InMaP γ=0.5", "OnZeta")
"""What is compared with the nearest class text."""


@dataclass(frozen=True)
class Labelled:
    """`labels` (n,) of the methods that see all images; `online` is OnZeta's accuracy for each order of arrival."""

    labels: dict[str, Tensor]
    online: list[float]

    def accuracies(self, truth: Tensor) -> dict[str, float]:
        rows = {method: accuracy(labels, truth) for method, labels in self.labels.items()}
        return rows | {"OnZeta": float(np.mean(self.online))}


def label(features: Tensor, text: Tensor, truth: Tensor, *, plain: str) -> Labelled:
    """All methods with their papers' parameters; `plain` names the nearest class text."""
    labels = {
        plain: (features @ text).argmax(1),
        "InMaP": (features @ fit_vision_proxies(features, text)).argmax(1),
        "InMaP γ=0.5": (features @ fit_vision_proxies(features, text, gamma=0.5)).argmax(1),
    }
    return Labelled(labels, [_online(features, text, truth, order) for order in range(ORDERS)])


def accuracy(labels: Tensor, truth: Tensor) -> float:
    return float((labels == truth).float().mean())


def _online(features: Tensor, text: Tensor, truth: Tensor, order: int) -> float:
    """Accuracy of the answers as they were given."""
    stream = OnlineZeroShot(text, len(truth))
    arrival = torch.randperm(len(truth), generator=torch.Generator().manual_seed(order))
    hits = [stream.observe(features[i]).label == int(truth[i]) for i in arrival]
    return sum(hits) / len(hits)
