"""Zero-shot labels and clusters on the demo CLIP: plain CLIP, InMaP, OnZeta, Multi-MaP, Multi-Sub.

    python benchmarks/zero_shot.py                 docs/zero_shot.md and docs/zero_shot.png
    python benchmarks/zero_shot.py --images 60     a quick look, printed only

The pictures are drawn from seeds that nothing was tuned on (benchmarks/demo_model/splits.py). All methods run with
their papers' parameters. What the papers leave open, Multi-MaP's epochs and Multi-Sub's schedule and learning rates,
was chosen on scenes of the clip_validation seeds.
"""

import argparse
import os
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib
import numpy as np
import torch
from clip_space.agreement import nmi, rand_index
from clip_space.scene_sets import SETS, scene_set
from demo_model.clip import HELD_OUT_PAIRS
from demo_model.scenes import COLOR_NAMES, SHAPES
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from covervlm.server.clip.clusters import kmeans
from covervlm.server.clip.encoder import ClipEncoder
from covervlm.server.clip.inmap import fit_vision_proxies
from covervlm.server.clip.onzeta import OnlineZeroShot
from covervlm.server.clip.proxies import multi_map, multi_sub
from covervlm.server.clip.templates import ENSEMBLE
from covervlm.server.demo import clip_path

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PAIRS = [f"{color} {shape}" for shape in SHAPES for color in COLOR_NAMES]
CAPTION = ("a photo of a {}",)
ORDERS = 5
PROMPTS = {
    "shape": (SHAPES, ("object with a shape of *", "a photo of a *")),
    "color": (COLOR_NAMES, ("object with a color of *", "a photo of something *")),
}


@dataclass
class Encoded:
    """One set: features (n, d), hidden (n, d_v), and what the pictures show."""

    features: Tensor
    hidden: Tensor
    shapes: Tensor
    colors: Tensor

    @property
    def pairs(self) -> Tensor:
        return self.shapes * len(COLOR_NAMES) + self.colors


@dataclass
class Tables:
    """Rows of the report: (set, task, {method: accuracy}) and (set, aspect, method, NMI, Rand index)."""

    labels: list[tuple[str, str, dict[str, float]]] = field(default_factory=list)
    spread: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    clusters: list[tuple[str, str, str, float, float]] = field(default_factory=list)


def encode(encoder: ClipEncoder, name: str, n: int) -> Encoded:
    images, shapes, colors = scene_set(name, n)
    hidden = []
    for start in tqdm(range(0, n, 8), desc=name, leave=False):
        hidden.append(encoder.hidden_pixels([encoder.preprocess(image) for image in images[start : start + 8]]))
    rows = torch.cat(hidden)
    features = normalize(rows @ encoder.visual_projection().T, dim=1)
    return Encoded(features, rows, torch.tensor(shapes), torch.tensor(colors))


def accuracy(labels: Tensor, truth: Tensor) -> float:
    return float((labels == truth).float().mean())


def online(data: Encoded, text: Tensor, truth: Tensor) -> list[float]:
    """Accuracy of the answers as they were given, for several orders of arrival."""
    results = []
    for order in range(ORDERS):
        stream = OnlineZeroShot(text, len(truth))
        arrival = torch.randperm(len(truth), generator=torch.Generator().manual_seed(order))
        hits = [stream.observe(data.features[i]).label == int(truth[i]) for i in arrival]
        results.append(sum(hits) / len(hits))
    return results


def label(tables: Tables, name: str, data: Encoded, encoder: ClipEncoder) -> None:
    """All labelling methods on all tasks."""
    seen = torch.ones(len(PAIRS), dtype=torch.bool)
    seen[[shape * len(COLOR_NAMES) + color for shape, color in HELD_OUT_PAIRS]] = False
    unseen = ~seen[data.pairs]
    tasks = [("shape", SHAPES, CAPTION, data.shapes), ("shape, seven templates", SHAPES, ENSEMBLE, data.shapes)]
    tasks += [("color", COLOR_NAMES, ("a photo of something {}",), data.colors)]
    tasks += [("64 pairs", PAIRS, CAPTION, data.pairs)]
    for task, names, templates, truth in tasks:
        text = encoder.class_proxies(names, templates)
        orders = online(data, text, truth)
        scores = {
            "CLIP": data.features @ text,
            "InMaP": data.features @ fit_vision_proxies(data.features, text),
            "InMaP γ=0.5": data.features @ fit_vision_proxies(data.features, text, gamma=0.5),
        }
        row = {method: accuracy(values.argmax(1), truth) for method, values in scores.items()}
        tables.labels.append((name, task, row | {"OnZeta": float(np.mean(orders))}))
        tables.spread[name, task] = (min(orders), max(orders))
        if task == "64 pairs" and int(unseen.sum()):
            held_out = {m: accuracy(v.argmax(1)[unseen], truth[unseen]) for m, v in scores.items()}
            tables.labels.append((name, f"of these, {int(unseen.sum())} of unseen pairs", held_out))


def cluster(tables: Tables, name: str, data: Encoded, encoder: ClipEncoder) -> None:
    """All clustering methods for both aspects, with as many clusters as the aspect has values."""
    projection = encoder.visual_projection()
    for aspect, (words, prompts) in PROMPTS.items():
        truth = data.shapes if aspect == "shape" else data.colors

        def add(method: str, labels: Tensor, aspect: str = aspect, truth: Tensor = truth) -> None:
            tables.clusters.append((name, aspect, method, nmi(labels, truth), rand_index(labels, truth)))

        add("CLIP k-means", kmeans(data.features, len(words)))
        for prompt in prompts:
            tower = encoder.prompt_tower(prompt)
            references, concept = tower.words(words), tower.words([aspect])[0]
            learned = multi_map(data.features, tower, concept, references)
            add(f"Multi-MaP, “{prompt}”", kmeans(learned.points, len(words)))
            fitted = multi_sub(data.hidden, projection, tower, references)
            add(f"Multi-Sub, “{prompt}”", kmeans(fitted.points, len(words)))


def report(tables: Tables, command: str, n: int, seconds: float) -> str:
    methods = ["CLIP", "InMaP", "InMaP γ=0.5", "OnZeta"]
    lines = [
        "# Zero-shot labels and clusters on the demo CLIP",
        "",
        f"`{command}` on torch {torch.__version__}, one CPU thread, {seconds / 60:.0f} minutes. {n} single-object "
        "scenes in each set, drawn by the project; the model is the demo CLIP, trained on such scenes. "
        "This is not CLIP's web-scale space: the figures compare methods on one small space, not on photographs.",
        "",
        "Sets: "
        + "; ".join(f"{name}: {SETS[name].about}" for name in dict.fromkeys(row[0] for row in tables.labels))
        + ".",
        "",
        "## Labels, % right",
        "",
        "InMaP learns from all images of the set at once, without labels. OnZeta answers each image as it comes; the "
        f"mean of {ORDERS} orders, lowest and highest in brackets. Both with their papers' parameters.",
        "",
        "| set | classes | " + " | ".join(methods) + " |",
        "|---|---|" + "---:|" * len(methods),
    ]
    for name, task, row in tables.labels:
        cells = [f"{100 * row[m]:.1f}" if m in row else "" for m in methods]
        if (name, task) in tables.spread:
            low, high = tables.spread[name, task]
            cells[-1] += f" ({100 * low:.1f}–{100 * high:.1f})"
        lines.append(f"| {name} | {task} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "## Clusters by a named aspect",
        "",
        "Eight clusters for each aspect; NMI / Rand index against the aspect's true values. What the papers leave open "
        "(epochs of Multi-MaP, schedule and learning rates of Multi-Sub) was chosen on other scenes.",
        "",
    ]
    sets = list(dict.fromkeys(row[0] for row in tables.clusters))
    lines += ["| aspect | method | " + " | ".join(sets) + " |", "|---|---|" + "---:|" * len(sets)]
    table = {(a, m, s): f"{100 * v:.1f} / {100 * r:.1f}" for s, a, m, v, r in tables.clusters}
    for aspect, method in dict.fromkeys((a, m) for _, a, m, _, _ in tables.clusters):
        lines.append(f"| {aspect} | {method} | " + " | ".join(table[aspect, method, s] for s in sets) + " |")
    return "\n".join([*lines, "", *verdicts(tables)]) + "\n"


def verdicts(tables: Tables) -> list[str]:
    """Where a method gains at least 15 points of NMI over k-means on one aspect and loses at most 5 on the other."""
    score = {(s, a, m): v for s, a, m, v, _ in tables.clusters}
    sets = list(dict.fromkeys(row[0] for row in tables.clusters))
    lines = ["At least 15 points of NMI above k-means on one aspect, and on none more than 5 below:", ""]
    for method in ("Multi-MaP", "Multi-Sub"):
        for i, wording in enumerate(("the paper's wording", "the wording of the model's own captions")):
            good = []
            for name in sets:
                gains = [
                    score[name, aspect, f"{method}, “{prompts[i]}”"] - score[name, aspect, "CLIP k-means"]
                    for aspect, (_, prompts) in PROMPTS.items()
                ]
                if max(gains) >= 0.15 and min(gains) >= -0.05:
                    good.append(name)
            lines.append(f"- {method}, {wording}: {', '.join(good) or 'on no set'} ({len(good)} of {len(sets)} sets)")
    return lines


def plot(tables: Tables, path: Path) -> None:
    """Shape accuracy by set and method, and NMI of both aspects by set and method."""
    figure, (left, *right) = plt.subplots(1, 3, figsize=(17, 4.6))
    rows = {name: row for name, task, row in tables.labels if task == "shape"}
    methods = ["CLIP", "InMaP", "InMaP γ=0.5", "OnZeta"]
    _bars(left, list(rows), {m: [100 * row[m] for row in rows.values()] for m in methods}, "shape: right labels, %")
    for panel, aspect in zip(right, PROMPTS, strict=True):
        groups: dict[str, list[float]] = {}
        for _, a, method, value, _ in tables.clusters:
            if a == aspect:
                groups.setdefault(method, []).append(100 * value)
        _bars(panel, list(rows), groups, f"{aspect}: NMI of clusters, %")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _bars(panel: plt.Axes, sets: list[str], groups: dict[str, list[float]], title: str) -> None:
    width = 0.8 / len(groups)
    for i, (method, values) in enumerate(groups.items()):
        panel.bar(np.arange(len(sets)) + i * width - 0.4 + width / 2, values, width, label=method)
    panel.set_xticks(range(len(sets)), sets)
    panel.set_ylim(0, 100)
    panel.set_title(title)
    panel.grid(axis="y", alpha=0.25)
    panel.legend(fontsize=7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300, help="in each set; other numbers are printed, not written")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    encoder, tables, started = ClipEncoder(str(clip_path()), device="cpu"), Tables(), time.perf_counter()
    for name in tqdm(options.sets):
        data = encode(encoder, name, options.images)
        label(tables, name, data, encoder)
        cluster(tables, name, data, encoder)
    command = shlex.join(["python", "benchmarks/zero_shot.py", *sys.argv[1:]])
    text = report(tables, command, options.images, time.perf_counter() - started)
    print(text)
    if options.images >= 300 and options.sets == list(SETS):
        docs = Path(__file__).parents[1] / "docs"
        docs.mkdir(exist_ok=True)
        (docs / "zero_shot.md").write_text(text + "\n![Accuracy and NMI by set](zero_shot.png)\n", encoding="utf-8")
        plot(tables, docs / "zero_shot.png")


if __name__ == "__main__":
    main()
