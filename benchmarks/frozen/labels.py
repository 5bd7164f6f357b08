"""Classifiers: a few labels for each class, a long tail, and groups of uneven size."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_model.scenes import COLOR_NAMES, SHAPES

from covervlm.server.clip.choice import AUTO, choose
from covervlm.server.clip.methods.contracts import Examples
from covervlm.server.clip.methods.groups import play
from frozen.plot import draw
from frozen.runs import SEEDS, Runs, collect, learned, table
from frozen.spaces import PAIRS, digits, scenes


def few_labels() -> list[str]:
    """Accuracy with a few labels for each class."""
    lines = []
    variants: dict[str, tuple[str, dict[str, Any]]] = {
        "linear": ("linear", {}),
        **{f"sea, eta {eta}": ("sea", {"eta": eta}) for eta in (0.0, 0.2, 0.5, 0.8)},
        "mlp": ("mlp", {}),
    }
    texts: dict[str, tuple[str, dict[str, Any]]] = {
        "margin": ("margin", {}),
        "tes, classes, without text": ("tes", {"output": "classes", "lambda_v": 0.0, "lambda_t": 0.0}),
        "tes, classes": ("tes", {"output": "classes"}),
        "tes, text": ("tes", {}),
    }
    panels: dict[str, list[tuple[int, Runs]]] = {}
    for title, space, sizes in (("noisy scenes", scenes(), (2, 5)), ("digits", digits(), (5, 20))):
        panels[title] = []
        for each in sizes:
            runs: Runs = {}
            for seed in range(SEEDS):
                rows, rest = space.draw(seed, lambda _, each=each: each)
                given = space.examples(rows)
                wanted = variants | (texts if space.text is not None else {})
                answers = {name: learned(m, given, seed, **p)(space.x[rest]) for name, (m, p) in wanted.items()}
                if space.text is not None:
                    answers["zero-shot"] = (space.x[rest] @ space.text).argmax(1)
                collect(runs, {name: float((a == space.y[rest]).float().mean()) for name, a in answers.items()})
            panels[title].append((each, runs))
        settings = [(f"{each} for each class", runs) for each, runs in panels[title]]
        lines += table(f"Few labels, {title}: accuracy", settings, "linear")
    draw(panels, Path(__file__).parents[2] / "docs" / "features.png")
    return lines


def automatic() -> list[str]:
    """Accuracy of what is chosen on held-out examples, beside what it was chosen from."""
    settings = []
    for title, space in (("noisy scenes", scenes()), ("digits", digits())):
        runs: Runs = {}
        for seed in range(SEEDS):
            rows, rest = space.draw(seed, lambda _: 5)
            found = choose(space.examples(rows), AUTO, seed=seed)
            answers = {"linear": learned("linear", space.examples(rows), seed)(space.x[rest])}
            answers["auto"] = found.head.logits(space.x[rest]).argmax(1)
            collect(runs, {name: float((a == space.y[rest]).float().mean()) for name, a in answers.items()})
        settings.append((title, runs))
    return table("What auto chooses, 5 labels for each class: accuracy", settings, "linear")


def tail() -> list[str]:
    """Accuracy by class where classes have from 8 examples to 1."""
    space, by_part = scenes(), dict[str, Runs]({part: {} for part in ("all classes", "many", "medium", "few")})
    methods: dict[str, dict[str, Any]] = {
        "margin, at 0: cross-entropy of cosines": {"margin": 0.0},
        "linear": {},
        "groups": {},
        "margin": {},
        "text_mixup": {},
        "text_mixup, alpha 0.5": {"alpha": 0.5},
    }
    for seed in range(SEEDS):
        rank = torch.randperm(len(PAIRS), generator=torch.Generator().manual_seed(seed)).argsort()
        counts = [round(8 * 8 ** (-int(r) / (len(PAIRS) - 1))) for r in rank]
        rows, rest = space.draw(seed, lambda label, counts=counts: counts[label])
        for name, parameters in methods.items():
            right = (
                learned(name.partition(",")[0], space.examples(rows), seed, **parameters)(space.x[rest])
                == space.y[rest]
            )
            means = torch.stack([right[space.y[rest] == label].float().mean() for label in range(len(PAIRS))])
            parts = {
                "all classes": rank >= 0,
                "many": rank < 21,
                "medium": (rank >= 21) & (rank < 43),
                "few": rank >= 43,
            }
            for part, chosen in parts.items():
                collect(by_part[part], {name: float(means[chosen].nanmean())})  # of some nothing is left
    return table("A tail of 8 : 1, noisy scenes: class mean", by_part.items(), next(iter(methods)))


def uneven_groups() -> list[str]:
    """Accuracy on shapes where three of four examples of a shape have its own colour."""
    space = scenes()
    shape, color = space.y // len(COLOR_NAMES), space.y % len(COLOR_NAMES)
    usual = (shape == color).long()
    by_figure: dict[str, Runs] = {"accuracy": {}, "mean of both groups": {}, "worst group": {}}
    for seed in range(SEEDS):
        order = torch.randperm(len(shape), generator=torch.Generator().manual_seed(seed))
        own, other = order[usual[order] == 1][:60], order[usual[order] == 0]
        rows, rest = torch.cat([own, other[:20]]), torch.cat([order[usual[order] == 1][60:], other[20:]])
        given = Examples(space.x[rows], labels=shape[rows], groups=usual[rows])
        answers = {name: learned(name, given, seed)(space.x[rest]) for name in ("linear", "groups")}
        batches = torch.randint(len(rows), (600, 64), generator=torch.Generator().manual_seed(seed))
        w, *_ = play(
            given.features * 10, shape[rows], usual[rows], torch.zeros(len(SHAPES), given.features.shape[1]), batches,
            rate=1.0, group_rate=0.2, lambda_p=0.5,
        )  # fmt: skip
        answers["groups, as a game"] = (space.x[rest] @ w.T).argmax(1)
        for name, found in answers.items():
            right = (found == shape[rest]).float()
            each = [float(right[usual[rest] == group].mean()) for group in (0, 1)]
            figures = (float(right.mean()), float(np.mean(each)), min(each))
            for figure, value in zip(by_figure, figures, strict=True):
                collect(by_figure[figure], {name: value})
    return table("Uneven groups, noisy scenes: shapes", by_figure.items(), "linear")
