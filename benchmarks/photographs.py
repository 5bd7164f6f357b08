"""What the pruning methods keep of photographs: how much of it MMTok keeps too, and how well it covers the picture.

    python benchmarks/photographs.py        a section at the end of docs/quality.md, and docs/photographs.png

The pictures are those of scikit-image that a camera, a microscope or a scanner took; `make .venv-zoo/.ready` fetches
them. As many drawn scenes of the evaluation split stand beside them. Nothing is answered: this says where the methods
differ, not which of them is right. About a minute on an idle machine.
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from evaluation.in_process import selections
from evaluation.question_sets import question_set, scene_of
from evaluation.variants import measured, measured_names
from PIL import Image

from covervlm.pruners import Objective, PruneInput
from covervlm.server.demo import clip_path, model_path
from covervlm.server.models.base import Adapter
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from covervlm.server.selection.clip_relevance import ClipRelevance

ROOT = Path(__file__).parents[1]
PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png"),
    *("coins.png", "grass.png", "gravel.png", "horse.png", "hubble_deep_field.jpg", "ihc.png", "moon.png"),
    *("motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg", "text.png"),
)
BUDGETS = (4, 8, 16, 32, 64, 128, 192)
METHODS = tuple(name for name in measured_names() if name != "none")
REFERENCE = "mmtok"
QUESTION = "What is in the image?"
HEADING = "\n## Photographs\n"


@dataclass
class Kept:
    """Of each method and budget, a figure for every picture: share of MMTok's picks, and coverage."""

    pictures: int = 0
    tokens: int = 0
    common: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    coverage: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))

    def mean(self, figures: dict[tuple[str, int], list[float]], method: str, count: int) -> float:
        return sum(figures[method, count]) / self.pictures


def photographs(folder: Path) -> Iterable[Image.Image]:
    for name in PHOTOGRAPHS:
        with Image.open(folder / name) as image:
            yield image.convert("RGB")


def drawn_scenes(count: int) -> Iterable[Image.Image]:
    return (scene_of(item.set, item.seed).image for item in question_set("standard", count, ["describe"]))


@torch.inference_mode()
def measure(adapter: Adapter, images: Iterable[Image.Image]) -> Kept:
    """Every method is asked the same question about every picture; coverage is of the picture alone."""
    pruners = {name: measured(name, **adapter.architecture.pruner_params) for name in METHODS}
    clip = ClipRelevance(str(clip_path()), adapter)
    text = adapter.question_embeddings(QUESTION)
    kept = Kept()
    for seed, image in enumerate(images):
        [encoded] = adapter.encode([adapter.preprocess(image)], cls_attention=True)
        [part] = encoded.layout.parts
        seen = PruneInput(
            tokens=encoded.tokens,
            features=encoded.features,
            text=text,
            grid=part.grid,
            cls_attention=encoded.cls_attention,
            clip_cosines=clip.cosines(encoded.features, clip.text(QUESTION)),
            seed=seed,
        )
        ours = pruners[REFERENCE]
        alone = replace(seen, text=None)
        objective = Objective([alone], tau_text=ours.tau_text, tau_vision=ours.tau_vision, alpha=ours.alpha)
        reference = selections(ours, seen, BUDGETS)
        for name, pruner in pruners.items():
            shown = seen if pruner.uses_text else alone
            for count, positions in selections(pruner, shown, BUDGETS).items():
                shared = int(torch.isin(positions, reference[count]).sum())
                kept.common[name, count].append(shared / count)
                kept.coverage[name, count].append(objective.coverage([positions])[0][-1])
        kept.pictures, kept.tokens = seed + 1, len(encoded.tokens)
    return kept


def table(rows: Iterable[tuple[str, Sequence[float]]]) -> str:
    lines = ["| method | " + " | ".join(map(str, reversed(BUDGETS))) + " |", "|---" * (len(BUDGETS) + 1) + "|"]
    for name, shares in rows:
        lines.append(f"| {name} | " + " | ".join(f"{100 * share:.1f}" for share in reversed(shares)) + " |")
    return "\n".join(lines)


def section(photos: Kept, scenes: Kept) -> str:
    """The figures in Markdown."""

    def rows(kept: Kept, figures: dict[tuple[str, int], list[float]]) -> list[tuple[str, list[float]]]:
        return [(name, [kept.mean(figures, name, count) for count in BUDGETS]) for name in METHODS]

    chance = ("by chance", [count / photos.tokens for count in BUDGETS])

    def common(kept: Kept) -> str:
        return table([*(row for row in rows(kept, kept.common) if row[0] != REFERENCE), chance])

    return "\n\n".join(
        [
            HEADING.strip(),
            "Written by\n\n    python benchmarks/photographs.py",
            f"What the same model keeps of {photos.pictures} pictures that scikit-image ships (photographs, "
            f"micrographs, scans of text), asked '{QUESTION}', beside {scenes.pictures} standard scenes. It has never "
            "seen a photograph and can say nothing about one, so this compares selections and claims nothing about "
            "answers.",
            "![Coverage of the picture against vision tokens kept](photographs.png)",
            f"Photographs: tokens that {REFERENCE} keeps too, in percent of those kept:",
            common(photos),
            "Standard scenes: the same:",
            common(scenes),
            "Photographs: coverage of the picture, in percent: the share of MMTok's objective without the question's "
            "words that the kept tokens reach. vision_coverage maximises just that, mmtok that and the words, so they "
            "lead by design:",
            table(rows(photos, photos.coverage)),
            "Standard scenes: the same:",
            table(rows(scenes, scenes.coverage)),
        ]
    )


def plot(path: Path, panels: dict[str, Kept]) -> None:
    figure, axes = plt.subplots(1, len(panels), figsize=(6.2 * len(panels), 4.6), sharey=True)
    for axis, (title, kept) in zip(axes, panels.items(), strict=True):
        for i, method in enumerate(METHODS):
            shares = [100 * kept.mean(kept.coverage, method, count) for count in BUDGETS]
            width = 2.4 if method == REFERENCE else 1.3
            axis.plot(BUDGETS, shares, label=method, linewidth=width, marker="os^Dv<>ph"[i % 9], markersize=4)
        axis.set_xscale("log", base=2)
        axis.set_xticks(BUDGETS, [str(count) for count in BUDGETS])
        axis.set_xlabel("vision tokens kept")
        axis.set_title(f"{kept.pictures} {title}")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("coverage of the picture, %")
    axes[-1].legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, default=ROOT / ".venv-zoo" / "skimage" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "quality.md", help="its last section is replaced")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    adapter = load_adapter(Checkpoint(model_path()))
    photos = measure(adapter, photographs(arguments.pictures))
    scenes = measure(adapter, drawn_scenes(photos.pictures))
    text = section(photos, scenes)
    before = arguments.out.read_text(encoding="utf-8").partition(HEADING)[0] if arguments.out.exists() else ""
    arguments.out.write_text(f"{before}\n{text}\n".lstrip(), encoding="utf-8")
    plot(arguments.out.with_name("photographs.png"), {"photographs": photos, "standard scenes": scenes})
    print(text)


if __name__ == "__main__":
    main()
