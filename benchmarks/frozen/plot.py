"""A plot of accuracy by the number of labels."""

from pathlib import Path

import matplotlib
import numpy as np

from frozen.runs import Runs

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw(panels: dict[str, list[tuple[int, Runs]]], path: Path) -> None:
    """A panel for each space: the mean accuracy of every method, by labels for each class."""
    figure, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), 4.4))
    for panel, (title, settings) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        sizes = [size for size, _ in settings]
        for number, method in enumerate(settings[0][1]):
            means = [100 * np.mean(runs[method]) for _, runs in settings]
            panel.plot(sizes, means, "o-" if number < 10 else "s--", label=method)  # there are ten colours
        panel.set_xticks(sizes)
        panel.set_xlabel("labels for each class")
        panel.set_title(f"{title}: right labels, %")
        panel.grid(alpha=0.25)
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
