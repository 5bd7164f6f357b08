"""What the kernels are compared with: float64 versions written from the formulas, and golden cases."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import interpreted
import numpy as np
import torch

from covervlm import kernels


def float64_affinity(text, tokens, features, tau_text, tau_vision, alpha):
    def unit(rows):
        rows = rows.double()
        return rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-8)

    blocks = []
    if text is not None and len(text):
        blocks.append((unit(text) @ unit(tokens).T / tau_text).softmax(-1) / len(text))
    if features is not None:
        blocks.append(alpha * (unit(features) @ unit(features).T / tau_vision).softmax(-1) / len(features))
    return torch.cat(blocks)


def float64_greedy(affinity, k, allowed=None, weights=None):
    """Picks in order, and whether another column than a copy of the best one was ever within 1e-6 of it."""
    matrix = affinity.double().numpy()
    n = matrix.shape[1]
    free = np.ones(n, bool) if allowed is None or k >= n or not allowed.any() else allowed.numpy().copy()
    covered, picks, near_tie = np.zeros(len(matrix)), [], False
    while len(picks) < k and free.any():
        gains = np.maximum(matrix - covered[:, None], 0).sum(0) * (1.0 if weights is None else weights.double().numpy())
        gains = np.where(free, gains, -1.0)
        best = int(gains.argmax())
        rivals = matrix[:, gains > gains[best] * (1 - 1e-6)] if gains[best] > 0 else matrix[:, :0]
        near_tie |= bool((rivals != matrix[:, [best]]).any())
        covered = np.maximum(covered, matrix[:, best])
        free[best] = False
        picks.append(best)
    return picks, near_tie


def objective(affinity, picks):
    covered = affinity.double()[:, list(picks)]
    return float(covered.amax(1).clamp(min=0).sum()) if covered.shape[1] else 0.0


ON_DEVICE = ("torch", "triton") if torch.cuda.is_available() else ()
"""Backends that run on a CUDA device, where there is one."""


def runner(interpreter: Any, function: str) -> Callable[..., torch.Tensor]:
    """A kernel as a function of backend and arguments, of CPU tensors and with a result on the CPU.

    Without a CUDA device, Triton runs in the interpreting process.
    """

    def run(backend: str, *args: Any, **kwargs: Any) -> torch.Tensor:
        kwargs["backend"] = backend
        if backend in ON_DEVICE:
            moved = {name: on_device(value) for name, value in kwargs.items()}
            return getattr(kernels, function)(*map(on_device, args), **moved).cpu()
        if backend == "triton":
            return interpreter.submit(interpreted.call, "covervlm.kernels", function, *args, **kwargs).result()
        return getattr(kernels, function)(*args, **kwargs)

    return run


def launcher(interpreter: Any) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """`greedy_triton.launch` by programs that share an item: picks and evaluations, on the CPU."""
    module = "covervlm.kernels.greedy_triton"

    def launch(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if ON_DEVICE:
            picks, evaluations = interpreted.shared_out(module, *map(on_device, args))
            return picks.cpu(), evaluations.cpu()
        return interpreter.submit(interpreted.shared_out, module, *args).result()

    return launch


def on_device(value: Any) -> Any:
    return value.cuda() if isinstance(value, torch.Tensor) else value


@dataclass(frozen=True, eq=False)
class GoldenCase:
    text: torch.Tensor
    tokens: torch.Tensor
    features: torch.Tensor
    allowed: torch.Tensor
    indices: list[int]
    greedy_order: list[int]
    k: int
    objective: float
    margin: float
    affinity_settings: dict[str, float]


def golden_cases(described: list[dict[str, Any]], arrays: Path) -> list[GoldenCase]:
    cases = []
    with np.load(arrays) as data:
        for about in described:
            case = {name: torch.from_numpy(data[f"{about['case']}.{name}"]) for name in ("x", "c", "z")}
            allowed = torch.ones(about["n"], dtype=torch.bool)
            allowed[torch.from_numpy(data[f"{about['case']}.exclude"]).long()] = False
            cases.append(
                GoldenCase(
                    text=case["z"],
                    tokens=case["x"],
                    features=case["c"],
                    allowed=allowed,
                    indices=data[f"{about['case']}.indices"].tolist(),
                    greedy_order=data[f"{about['case']}.greedy_order"].tolist(),
                    k=about["k"],
                    objective=about["objective"],
                    margin=about["smallest_relative_margin"],
                    affinity_settings={name: about[name] for name in ("tau_text", "tau_vision", "alpha")},
                )
            )
    return cases
