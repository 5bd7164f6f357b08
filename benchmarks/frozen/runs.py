"""Figures of several methods by seed, and their table."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from scipy.stats import t as student
from torch import Tensor

from covervlm.server.clip.methods.contracts import Examples
from covervlm.server.clip.methods.registry import method_class

SEEDS = 5
Runs = dict[str, list[float]]
"""Figures of each method by seed."""


def table(title: str, runs: Iterable[tuple[str, Runs]], baseline: str) -> list[str]:
    """Means in percent, and the difference to the baseline with half its interval, a column for each setting."""
    settings = list(runs)
    lines = [
        f"## {title}",
        "",
        f"Baseline: {baseline}.",
        "",
        "| method | " + " | ".join(name for name, _ in settings) + " |",
    ]
    lines.append("|---|" + "---:|" * len(settings))
    for method in settings[0][1]:
        cells = []
        for _, found in settings:
            values, base = np.array(found[method]), np.array(found[baseline])
            cell, apart = f"{100 * values.mean():.1f}", 100 * (values - base)
            if method != baseline:
                half = student.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / np.sqrt(len(apart))
                cell += f" ({apart.mean():+.1f} ± {half:.1f})"
            cells.append(cell)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def learned(method: str, given: Examples, seed: int, **parameters: Any) -> Callable[[Tensor], Tensor]:
    """Answers of a trained head."""
    head = method_class("train", method)(**parameters).fit(given, seed=seed)
    return lambda x: head.logits(x).argmax(dim=1)


def collect(runs: Runs, figures: dict[str, float]) -> None:
    for name, value in figures.items():
        runs.setdefault(name, []).append(value)
