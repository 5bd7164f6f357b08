"""Groups: of a least size, by what changed copies leave, and by the words that name an aspect."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from clip_space.agreement import nmi, rand_index
from clip_space.scene_sets import SETS, scene_set
from clip_space.views import recoloured, shuffled
from demo_model.scenes import COLOR_NAMES, SHAPES
from PIL.Image import Image
from torch import Tensor

from covervlm.server.clip.encoder.prompt_tower import PromptTower
from covervlm.server.clip.methods.coke import CoKe, OnlineKMeans, whole_step
from covervlm.server.clip.methods.contracts import Pictures
from covervlm.server.clip.methods.kmeans import kmeans
from covervlm.server.clip.methods.multi_map import MultiMaP
from covervlm.server.clip.prompt_choice import clearest, wordings
from frozen.augmentation import without_changes
from frozen.runs import SEEDS
from frozen.spaces import digits, embedded, encoder, hidden, scenes

_STILL = 1e-9
"""A learning rate at which words stay where they are."""

Change = Callable[[Image, np.random.Generator], Image]


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


def aspects(n: int = 96, copies: int = 2) -> list[str]:
    """NMI with shapes and colours where copies of each picture have other hues, or their tiles in another order."""
    lines = ["## Groups by what changed copies leave: NMI with shape / with colour", ""]
    lines += ["| set | k-means | other hues | tiles shuffled | by chance | 95 % of chance |", "|---|" + "---:|" * 5]
    for name in SETS:
        images, shapes, colors = scene_set(name, n)
        rng, x = np.random.default_rng(1), embedded(hidden(f"{name}_{n}", lambda images=images: images))
        found = [kmeans(x, len(SHAPES))]
        for change in (recoloured, shuffled):

            def changed(images: list[Image] = images, change: Change = change) -> list[Image]:
                return [change(image, rng) for _ in range(copies) for image in images]  # noqa: B023

            rows = hidden(f"{name}_{n}_{change.__name__}", changed).unflatten(0, (copies, n)).transpose(0, 1)
            found.append(kmeans(without_changes(x, embedded(rows)), len(SHAPES)))
        cells = [f"{100 * nmi(labels, shapes):.0f} / {100 * nmi(labels, colors):.0f}" for labels in found]
        by_chance = np.random.default_rng(0)
        chance = [nmi(by_chance.permutation(found[0].numpy()), shapes) for _ in range(200)]
        cells += [f"{100 * np.mean(chance):.0f}", f"{100 * np.quantile(chance, 0.95):.0f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def words(n: int = 96) -> list[str]:
    """NMI of the words that images are nearest to, alone and in sentences, and after Multi-MaP has learned."""
    lines = ["## Words for an aspect: NMI of the nearest word, and of what Multi-MaP makes of it", ""]
    columns = [
        "set",
        "aspect",
        "bare word",
        "learned",
        "paper's sentence",
        "clearest sentence",
        "learned",
        "labels changed",
    ]
    columns += ["8 wrong words too", "learned", "learned ten times as fast"]
    lines += ["| " + " | ".join(columns) + " |", "|---|---|" + "---:|" * 9]
    for name in ("clean", "noisy", "occluded"):
        images, shapes, colors = scene_set(name, n)
        rows = hidden(f"{name}_{n}", lambda images=images: images)
        x = embedded(rows)
        for aspect, right, wrong, truth in (
            ("shape", SHAPES, COLOR_NAMES, shapes),
            ("color", COLOR_NAMES, SHAPES, colors),
        ):
            towers = [encoder().prompt_tower(prompt) for prompt in wordings(aspect, "")]
            known = [tower.encode(tower.words(right)).detach() for tower in towers]
            tower = towers[clearest(x, known, encoder().temperature)]
            bare = (x @ encoder().embed_texts(list(right)).T).argmax(dim=1)
            in_sentence = (x @ known[0].T).argmax(dim=1)

            def grouped(given: Sequence[str], rate: float = 0.005, tower: PromptTower = tower) -> Tensor:
                pictures = Pictures(
                    rows,  # noqa: B023
                    encoder().visual_projection(),
                    tower,
                    tower.words([aspect])[0],  # noqa: B023
                    tower.words(given),
                )
                return MultiMaP(learning_rate=rate).group(pictures, len(SHAPES)).labels

            still, learned = grouped(right, _STILL), grouped(right)
            both = [*right, *wrong]
            alone = grouped(right, tower=encoder().prompt_tower("*"))
            values = [nmi(labels, truth) for labels in (bare, alone, in_sentence, still, learned)]
            more = [nmi(grouped(both, rate), truth) for rate in (_STILL, 0.005, 0.05)]
            cells = [f"{100 * value:.1f}" for value in values]
            cells += [f"{100 * (1 - rand_index(still, learned)):.1f} % of pairs", *(f"{100 * v:.1f}" for v in more)]
            lines.append(f"| {name} | {aspect} | " + " | ".join(cells) + " |")
    return [*lines, ""]
