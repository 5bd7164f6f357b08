"""Methods that learn on frozen features, each against its baselines, on the demo CLIP's noisy scenes and on digits.

    python benchmarks/features.py                  docs/features.md, about an hour
    python benchmarks/features.py --only tail      one table, printed
    python benchmarks/features.py --only speed     full-size times; run it on an idle machine

Noisy scenes: 1,600 single objects of the zero-shot seeds, 64 classes (shape and colour). Digits: scikit-learn's 1,797
pictures of 8 x 8 pixels, scaled to unit length; they have no text. Every figure is a mean over seeds, which draw the
examples and start the methods; differences are paired by seed, with 95 % intervals by Student's t.
"""

import argparse
import os
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clip_space.agreement import nmi
from clip_space.class_proxies import class_proxies
from clip_space.scene_sets import SETS, scene_set
from clip_space.views import crop, recoloured, shuffled
from demo_model.scenes import COLOR_NAMES, SHAPES
from PIL.Image import Image
from scipy.stats import t as student
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.clip.choice import AUTO, Candidate, choose
from covervlm.server.clip.encoder.encoder import ClipEncoder
from covervlm.server.clip.methods.augmentation import Augmentation
from covervlm.server.clip.methods.coke import CoKe, OnlineKMeans, whole_step
from covervlm.server.clip.methods.contracts import Examples, Pictures
from covervlm.server.clip.methods.groups import play
from covervlm.server.clip.methods.kmeans import kmeans
from covervlm.server.clip.methods.linear import Linear
from covervlm.server.clip.methods.registry import method_class
from covervlm.server.clip.methods.sea import SeA
from covervlm.server.clip.methods.soft_triple import principal_directions
from covervlm.server.demo import clip_path

SEEDS = 5
SCENES = 1600
PAIRS = [f"{color} {shape}" for shape in SHAPES for color in COLOR_NAMES]
Runs = dict[str, list[float]]
"""Figures of each method by seed."""


@dataclass(frozen=True, eq=False)
class Space:
    """Features (n, d) with rows of unit length, labels (n,), and the classes' text (d, K) where there is any."""

    x: Tensor
    y: Tensor
    text: Tensor | None = None

    def examples(self, rows: Tensor, labels: Tensor | None = None, **more: Tensor) -> Examples:
        return Examples(self.x[rows], self.text, self.y[rows] if labels is None else labels, **more)

    def draw(self, seed: int, counts: Callable[[int], int]) -> tuple[Tensor, Tensor]:
        """Rows to learn from, `counts(label)` of each class, and all the others."""
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(seed))
        chosen = [order[self.y[order] == label][: counts(label)] for label in range(int(self.y.max()) + 1)]
        known = torch.cat(chosen)
        return known, order[~torch.isin(order, known)]


@cache
def encoder() -> ClipEncoder:
    return ClipEncoder(str(clip_path()), device="cpu")


def hidden(images: list[Image]) -> Tensor:
    """(n, d_v) features before the projection."""
    pixels = [encoder().preprocess(image) for image in images]
    return torch.cat([encoder().hidden_pixels(pixels[start : start + 8]) for start in range(0, len(pixels), 8)])


def embed(images: list[Image]) -> Tensor:
    return normalize(hidden(images) @ encoder().visual_projection().T, dim=1)


@cache
def scenes() -> Space:
    images, shapes, colors = scene_set("noisy", SCENES)
    y = torch.tensor(shapes) * len(COLOR_NAMES) + torch.tensor(colors)
    return Space(embed(images), y, class_proxies(encoder().embed_texts, PAIRS, ("a photo of a {}",)))


@cache
def crops(n: int = 600) -> tuple[Tensor, Tensor]:
    """Two crops of each of the first scenes."""
    images, *_ = scene_set("noisy", SCENES)
    rng = np.random.default_rng(0)
    first, second = (embed([crop(image, rng) for image in images[:n]]) for _ in range(2))
    return first, second


@cache
def digits() -> Space:
    from sklearn.datasets import load_digits  # needed here alone

    pixels, labels = load_digits(return_X_y=True)
    return Space(normalize(torch.from_numpy(pixels).float(), dim=1), torch.from_numpy(labels).long())


def table(title: str, runs: Iterable[tuple[str, Runs]], baseline: str) -> list[str]:
    """Means in percent, and the difference to the baseline with half its interval, a column for each setting."""
    settings = list(runs)
    lines = [f"## {title}", "", "| method | " + " | ".join(name for name, _ in settings) + " |"]
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
    etas = tuple(Candidate("sea", {"eta": eta}) for eta in (0.0, 0.2, 0.5, 0.8))
    for title, space, sizes in (("noisy scenes", scenes(), (2, 5, 10)), ("digits", digits(), (5, 10, 20))):
        settings = []
        for each in sizes:
            runs: Runs = {}
            for seed in range(SEEDS):
                rows, rest = space.draw(seed, lambda _, each=each: each)
                given = space.examples(rows)
                wanted = variants | (texts if space.text is not None else {})
                answers = {name: learned(m, given, seed, **p)(space.x[rest]) for name, (m, p) in wanted.items()}
                if space.text is not None:
                    answers["zero-shot"] = (space.x[rest] @ space.text).argmax(1)
                for name, candidates in (("sea, eta by hold-out", etas), ("auto", AUTO)):
                    answers[name] = choose(given, candidates, seed=seed).head.logits(space.x[rest]).argmax(1)
                collect(runs, {name: float((a == space.y[rest]).float().mean()) for name, a in answers.items()})
            settings.append((f"{each} for each class", runs))
        lines += table(f"Few labels, {title}: accuracy", settings, "linear")
    return lines


def tail() -> list[str]:
    """Accuracy by class where classes have from 16 examples to 1."""
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
        counts = [round(16 * 16 ** (-int(r) / (len(PAIRS) - 1))) for r in rank]
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
                collect(by_part[part], {name: float(means[chosen].mean())})
    return table("A tail of 16 : 1, noisy scenes: class mean", by_part.items(), next(iter(methods)))


def uneven_groups() -> list[str]:
    """Accuracy on shapes where three of four examples of a shape have its own colour."""
    space = scenes()
    shape, color = space.y // len(COLOR_NAMES), space.y % len(COLOR_NAMES)
    usual = (shape == color).long()
    by_figure: dict[str, Runs] = {"accuracy": {}, "mean of both groups": {}, "worst group": {}}
    for seed in range(SEEDS):
        order = torch.randperm(len(shape), generator=torch.Generator().manual_seed(seed))
        own, other = order[usual[order] == 1][:120], order[usual[order] == 0]
        rows, rest = torch.cat([own, other[:40]]), torch.cat([order[usual[order] == 1][120:], other[40:]])
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


def recall(points: Tensor, y: Tensor, k: int) -> float:
    """The share of points with one of their class among their k nearest others."""
    nearest = (points @ points.T).fill_diagonal_(-2).topk(k, dim=1).indices
    return float((y[nearest] == y[:, None]).any(dim=1).float().mean())


def retrieval() -> list[str]:
    """Search among 32 classes of which nothing was learned."""
    space = scenes()
    figures: dict[str, Runs] = {"R@1": {}, "R@4": {}, "NMI": {}}
    for seed in range(SEEDS):
        order = torch.randperm(len(PAIRS), generator=torch.Generator().manual_seed(seed))
        seen = torch.isin(space.y, order[:32])
        given, asked, y = Examples(space.x[seen], labels=space.y[seen]), space.x[~seen], space.y[~seen]
        spaces = {"features": asked}
        for centers in (1, 5, 10):
            found = method_class("project", "soft_triple")(centers=centers).fit(given, seed=seed)
            spaces[f"soft_triple, {centers} centres"] = found.embed(asked)
        for d in (8, 16):
            spaces[f"principal directions, {d}"] = normalize(asked @ principal_directions(given.features, d).T, dim=1)
            spaces[f"kda, {d}"] = method_class("project", "kda")(dimensions=d).fit(given, seed=seed).embed(asked)
        for name, points in spaces.items():
            values = recall(points, y, 1), recall(points, y, 4), nmi(kmeans(points, 32, restarts=3), y)
            for figure, value in zip(figures, values, strict=True):
                collect(figures[figure], {name: value})
    return table("Search in unseen classes, noisy scenes", figures.items(), "features")


def coarse_labels() -> list[str]:
    """Search by shape and colour where only the shape was told; two crops of each scene."""
    (first, second), space = crops(), scenes()
    y = space.y[: len(first)]
    asked, fine = space.x[len(first) :], space.y[len(first) :]
    figures: dict[str, Runs] = {"R@1": {}, "R@4": {}}
    for seed in range(SEEDS):
        given = Examples(first, labels=y // len(COLOR_NAMES), second_views=second)
        spaces = {"features": asked}
        for name, parameters in {"coins": {}, "coins, without classes": {"coarse_weight": 0.0}}.items():
            method = method_class("project", "coins")
            spaces[name] = method(epochs=50, **parameters).fit(given, seed=seed).embed(asked)
        spaces["soft_triple on coarse classes"] = (
            method_class("project", "soft_triple")().fit(given, seed=seed).embed(asked)
        )
        for name, points in spaces.items():
            for figure, k in (("R@1", 1), ("R@4", 4)):
                collect(figures[figure], {name: recall(points, fine, k)})
    return table("Fine search from coarse classes, noisy scenes", figures.items(), "features")


def sizes() -> list[str]:
    """NMI and smallest group of online k-means as the dual step grows."""
    lines = ["## Groups of a least size: NMI and smallest group", ""]
    lines += [
        "| set | dual step | stream, NMI | smallest | 10 epochs, NMI | smallest | asked |",
        "|---|---|" + "---:|" * 5,
    ]
    for name, space, count in (("noisy scenes", scenes(), 64), ("digits", digits(), 10)):
        asked = 0.4 * len(space.x) / count
        for step in (0.0, 0.02, 0.05, 0.2, 1.0):
            cells: list[list[float]] = []
            for seed in range(SEEDS):
                order = torch.randperm(len(space.x), generator=torch.Generator().manual_seed(seed))
                stream = CoKe(dual_step=step).open(space.x[order[:count]].T, len(space.x))
                once, labels = torch.empty_like(space.y), torch.empty_like(space.y)
                for rows in order.split(16):
                    once[rows] = stream.observe_batch(space.x[rows])
                start = space.x[order[:count]].T
                groups = OnlineKMeans(start, n=len(space.x), ratio=0.4, dual_step=whole_step(step, count))
                for _ in range(10):
                    groups.begin_epoch()
                    for rows in order.split(64):
                        labels[rows] = groups.assign(space.x[rows])
                smallest = (float(torch.bincount(found, minlength=count).min()) for found in (once, labels))
                cells.append(
                    [v for pair in zip((nmi(once, space.y), nmi(labels, space.y)), smallest, strict=True) for v in pair]
                )
            a, b, c, d = np.mean(cells, axis=0)
            lines.append(f"| {name} | {step} | {100 * a:.1f} | {b:.1f} | {100 * c:.1f} | {d:.1f} | {asked:.1f} |")
    return [*lines, ""]


def aspects(n: int = 96, copies: int = 3) -> list[str]:
    """NMI with shapes and colours where copies of each picture have other hues, or their tiles in another order."""
    lines = ["## Groups by what copies leave: NMI with shape / with colour", ""]
    lines += ["| set | k-means | other hues | tiles shuffled | chance |", "|---|" + "---:|" * 4]
    for name in SETS:
        images, shapes, colors = scene_set(name, n)
        rng, base = np.random.default_rng(1), hidden(images)
        tower = encoder().prompt_tower("a photo of something *")
        words = tower.words(COLOR_NAMES)
        cells, labels = [], kmeans(embed(images), len(SHAPES))
        for change in (None, recoloured, shuffled):
            if change is not None:
                changed = torch.stack([hidden([change(image, rng) for image in images]) for _ in range(copies)], dim=1)
                pictures = Pictures(base, encoder().visual_projection(), tower, words[0], words, changed)
                labels = Augmentation().group(pictures, len(SHAPES)).labels
            cells.append(f"{100 * nmi(labels, shapes):.0f} / {100 * nmi(labels, colors):.0f}")
        by_chance = np.mean([nmi(rng.permutation(labels.numpy()), shapes) for _ in range(50)])
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {100 * by_chance:.0f} |")
    return [*lines, ""]


def speed() -> list[str]:
    """50,000 features of 768 dimensions in 1,000 classes, random about their classes' centres."""
    generator = torch.Generator().manual_seed(0)
    n, d, count = 50_000, 768, 1000
    centers = normalize(torch.randn(count, d, generator=generator), dim=1)
    y = torch.randint(count, (n,), generator=generator)
    x = normalize(centers[y] + torch.randn(n, d, generator=generator) * 3 / d**0.5, dim=1)
    lines = ["## Speed at 50,000 x 768, 1,000 classes", "", f"Load average {os.getloadavg()[0]:.1f}.", ""]
    lines += ["| what | seconds | core-seconds | MiB beyond the inputs | right on others |", "|---|" + "---:|" * 4]
    groups = OnlineKMeans(centers.T, n=n, ratio=0.4, dual_step=20)
    groups.begin_epoch()
    taken = []
    for rows in x[: 64 * 300].split(64):
        begun = time.perf_counter()
        groups.assign(rows)
        taken.append(1000 * (time.perf_counter() - begun))
    fast, median = np.percentile(taken, [10, 50])
    others = torch.randint(count, (5000,), generator=generator)
    asked = normalize(centers[others] + torch.randn(5000, d, generator=generator) * 3 / d**0.5, dim=1)
    for method in (Linear(), SeA()):
        before, begun, used = peak(), time.perf_counter(), time.process_time()
        head = method.fit(Examples(x, labels=y))
        seconds, cores = time.perf_counter() - begun, time.process_time() - used
        right = float((head.logits(asked).argmax(1) == others).float().mean())
        name = type(method).__name__
        lines.append(f"| {name} | {seconds:.0f} | {cores:.0f} | {peak() - before:.0f} | {100 * right:.1f} % |")
    return [*lines, "", f"CoKe, 64 images: {median:.2f} ms at the median, {fast:.2f} ms at the tenth percentile.", ""]


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


TABLES = {f.__name__: f for f in (few_labels, tail, uneven_groups, retrieval, coarse_labels, sizes, aspects, speed)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(TABLES), help="these tables, printed and not written")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    begun = time.perf_counter()
    text = [line for name in options.only or TABLES for line in TABLES[name]()]
    took = f"{(time.perf_counter() - begun) / 60:.0f} minutes, load average {os.getloadavg()[0]:.1f}"
    about = f"`python benchmarks/features.py` on torch {torch.__version__}, {options.threads} threads, {took}."
    page = "\n".join(["# Learning on frozen features", "", about, "", *text])
    print(page)
    if options.only is None:
        (Path(__file__).parents[1] / "docs" / "features.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
