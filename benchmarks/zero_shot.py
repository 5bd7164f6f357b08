"""Zero-shot labels and clusters on the demo CLIP: plain CLIP, InMaP, OnZeta, Multi-MaP, Multi-Sub.

    python benchmarks/zero_shot.py                 docs/zero_shot.md and docs/zero_shot.png
    python benchmarks/zero_shot.py --images 60     a quick look, printed only

The pictures are drawn from seeds that nothing was tuned on (benchmarks/demo_model/splits.py). All methods run with
their papers' parameters. What the papers leave open (Multi-MaP's epochs, Multi-Sub's schedule and learning rates, and
where k-means starts) was chosen on scenes of the clip_validation and tuning_hard seeds.
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
from clip_space.class_proxies import class_proxies
from clip_space.labelling import METHODS, ORDERS, accuracy, label
from clip_space.scene_sets import SETS, scene_set
from demo_model.clip import HELD_OUT_PAIRS
from demo_model.scenes import COLOR_NAMES, SHAPES
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from covervlm.server.clip.encoder.encoder import ClipEncoder
from covervlm.server.clip.encoder.templates import ENSEMBLE
from covervlm.server.clip.methods.contracts import Pictures
from covervlm.server.clip.methods.kmeans import kmeans
from covervlm.server.clip.methods.multi_map import MultiMaP
from covervlm.server.clip.methods.multi_sub import MultiSub
from covervlm.server.clip.prompt_choice import clearest, wordings
from covervlm.server.demo import clip_path

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PAIRS = [f"{color} {shape}" for shape in SHAPES for color in COLOR_NAMES]
CAPTION = ("a photo of a {}",)
ASPECTS = {"shape": SHAPES, "color": COLOR_NAMES}
PAPERS, CLEAREST = "the paper's wording", "the clearest wording"


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
    chosen: dict[tuple[str, str], str] = field(default_factory=dict)


def encode(encoder: ClipEncoder, name: str, n: int) -> Encoded:
    images, shapes, colors = scene_set(name, n)
    hidden = []
    for start in tqdm(range(0, n, 8), desc=name, leave=False):
        hidden.append(encoder.hidden_pixels([encoder.preprocess(image) for image in images[start : start + 8]]))
    rows = torch.cat(hidden)
    features = normalize(rows @ encoder.visual_projection().T, dim=1)
    return Encoded(features, rows, torch.tensor(shapes), torch.tensor(colors))


def label_all(tables: Tables, name: str, data: Encoded, encoder: ClipEncoder) -> None:
    """All labelling methods on all tasks."""
    seen = torch.ones(len(PAIRS), dtype=torch.bool)
    seen[[shape * len(COLOR_NAMES) + color for shape, color in HELD_OUT_PAIRS]] = False
    unseen = ~seen[data.pairs]
    tasks = [("shape", SHAPES, CAPTION, data.shapes), ("shape, seven templates", SHAPES, ENSEMBLE, data.shapes)]
    tasks += [("color", COLOR_NAMES, ("a photo of something {}",), data.colors)]
    tasks += [("64 pairs", PAIRS, CAPTION, data.pairs)]
    for task, names, templates, truth in tasks:
        labelled = label(data.features, class_proxies(encoder.embed_texts, names, templates), truth, plain="CLIP")
        tables.labels.append((name, task, labelled.accuracies(truth)))
        tables.spread[name, task] = (min(labelled.online), max(labelled.online))
        if task == "64 pairs" and int(unseen.sum()):
            held_out = {m: accuracy(found[unseen], truth[unseen]) for m, found in labelled.labels.items()}
            tables.labels.append((name, f"of these, {int(unseen.sum())} of unseen pairs", held_out))


def cluster(tables: Tables, name: str, data: Encoded, encoder: ClipEncoder) -> None:
    """All clustering methods for both aspects, with as many clusters as the aspect has values."""
    projection = encoder.visual_projection()
    for aspect, words in ASPECTS.items():
        truth = data.shapes if aspect == "shape" else data.colors

        def add(method: str, labels: Tensor, aspect: str = aspect, truth: Tensor = truth) -> None:
            tables.clusters.append((name, aspect, method, nmi(labels, truth), rand_index(labels, truth)))

        add("CLIP k-means", kmeans(data.features, len(words)))
        towers = [encoder.prompt_tower(prompt) for prompt in wordings(aspect, "")]
        encoded = [tower.encode(tower.words(words)) for tower in towers]
        chosen = clearest(data.features, encoded, encoder.temperature)
        tables.chosen[name, aspect] = towers[chosen].prompt
        for wording, index in ((PAPERS, 0), (CLEAREST, chosen)):
            tower = towers[index]
            pictures = Pictures(data.hidden, projection, tower, tower.words([aspect])[0], tower.words(words))
            add(f"nearest word, {wording}", pictures.nearest_words())
            add(f"Multi-MaP, {wording}", MultiMaP().group(pictures, len(words)).labels)
            add(f"Multi-Sub, {wording}", MultiSub().group(pictures, len(words)).labels)


def report(tables: Tables, command: str, n: int, seconds: float) -> str:
    methods = ["CLIP", *METHODS]
    lines = [
        "# Zero-shot labels and clusters on the demo CLIP",
        "",
        f"`{command}` on torch {torch.__version__}, one CPU thread, {seconds / 60:.0f} minutes. {n} single-object "
        "scenes in each set, drawn by the project; the model is the demo CLIP, trained on such scenes. "
        "This is not a space like CLIP's, trained at web scale: the figures compare methods on one small space, not on "
        "photographs.",
        "",
        "Sets: "
        + "; ".join(f"{name}: {SETS[name].about}" for name in dict.fromkeys(row[0] for row in tables.labels))
        + ".",
        "",
        "## Labels, % right",
        "",
        "InMaP learns from all images of the set at once, without labels. OnZeta labels each image as it comes; the "
        f"figure is the mean of {ORDERS} orders, lowest and highest in brackets. Both with their papers' parameters.",
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
        "(epochs of Multi-MaP, schedule and learning rates of Multi-Sub, k-means from the groups of the learned words) "
        "was chosen on other scenes. The paper's wording is “object with a shape of *”, “object with a color of *”; "
        "the clearest of that and two captions is what the server takes without a `prompt`, chosen without labels: "
        + "; ".join(f"{name}, {aspect} “{prompt}”" for (name, aspect), prompt in tables.chosen.items())
        + ". Compare Multi-MaP with the nearest word: within tens of epochs a learned word stays near the word "
        "it started from.",
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
    lines = ["At least 15 points of NMI above k-means on one aspect, and at most 5 below it on the other:", ""]
    for method in ("Multi-MaP", "Multi-Sub"):
        for wording in (PAPERS, CLEAREST):
            good = []
            for name in sets:
                gains = [
                    score[name, aspect, f"{method}, {wording}"] - score[name, aspect, "CLIP k-means"]
                    for aspect in ASPECTS
                ]
                if max(gains) >= 0.15 and min(gains) >= -0.05:
                    good.append(name)
            lines.append(f"- {method}, {wording}: {', '.join(good) or 'on no set'} ({len(good)} of {len(sets)} sets)")
    return lines


def plot(tables: Tables, path: Path) -> None:
    """Shape accuracy by set and method, and NMI of both aspects by set and method."""
    figure, (left, *right) = plt.subplots(1, 3, figsize=(17, 4.6))
    rows = {name: row for name, task, row in tables.labels if task == "shape"}
    methods = ["CLIP", *METHODS]
    _bars(left, list(rows), {m: [100 * row[m] for row in rows.values()] for m in methods}, "shape: right labels, %")
    for panel, aspect in zip(right, ASPECTS, strict=True):
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
        label_all(tables, name, data, encoder)
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
