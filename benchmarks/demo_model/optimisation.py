"""What the training stages share: seeds, the learning-rate schedule, the optimizer, the printed log."""

import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn


def seed_everything(seed: int) -> np.random.Generator:
    random.seed(seed)
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up and cosine decay over phases of (steps, share of the decay).

    The shares say how far the learning rate falls in each phase; a phase of few but costly steps may take a large one.
    """

    peak: float
    warmup: int
    phases: Sequence[tuple[int, float]]
    floor: float = 0.02

    @property
    def steps(self) -> int:
        return sum(steps for steps, _ in self.phases)

    def progress(self, step: int) -> float:
        """How much of the decay lies before this step, in [0, 1)."""
        done = 0.0
        for steps, share in self.phases:
            if step < steps:
                return done + share * step / steps
            step, done = step - steps, done + share
        return 1.0

    def rate(self, step: int) -> float:
        decay = 0.5 * (1 + math.cos(math.pi * self.progress(step)))
        return self.peak * min(1.0, (step + 1) / self.warmup) * (self.floor + (1 - self.floor) * decay)


def adamw(modules: Iterable[nn.Module], weight_decay: float) -> torch.optim.AdamW:
    """AdamW over all trainable parameters, with weight decay on the matrices only."""
    params = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float, clip: float | None = 1.0) -> None:
    """One step down the gradient of `loss`, its norm clipped."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    optimizer.step()


class Log:
    """Prints one JSON object per line and keeps them, for a test or a plot to read."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.entries: list[dict[str, Any]] = []

    def __call__(self, **values: Any) -> None:
        rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}
        self.entries.append(rounded)
        print(json.dumps({"stage": self.stage, **rounded}), flush=True)
