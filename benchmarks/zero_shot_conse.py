"""Zero-shot labels in a space that is neither CLIP nor the demo's: ConSE over Fashion-MNIST, from packages alone.

    python benchmarks/zero_shot_conse.py                  docs/zero_shot_conse.md
    python benchmarks/zero_shot_conse.py --images 100     a quick look, printed only

Needs packages that the project itself does not; if they are missing it says which, and how to get them. Nothing was
tuned on these pictures; showing them dark on white at full size was chosen on 160 pictures of the training part.
"""

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from clip_space.conse import FASHION_NAMES, PACKAGES, ConseSpace, fashion
from clip_space.labelling import METHODS, ORDERS, Labelled, label
from torch import Tensor

from covervlm.server.clip.encoder.templates import ENSEMBLE

WORDINGS = {"the name alone": ("{}",), "“a photo of a {}.”": ("a photo of a {}.",), "seven templates": ENSEMBLE}
PLAIN = "nearest name"


def report(results: dict[str, Labelled], truth: Tensor, command: str, seconds: float) -> str:
    columns = (PLAIN, *METHODS)
    lines = [
        "# Zero-shot labels in a ConSE space",
        "",
        f"`{command}` on torch {torch.__version__}, one CPU thread, {seconds / 60:.0f} minutes on a shared machine. "
        "This space is not CLIP's, and nobody would serve it; but it is made of models that others trained, on "
        "photographs and on text, and that ship in packages. EfficientNet-Lite0 recognises ImageNet's 1,000 classes; "
        "an image is the mean of the all-MiniLM-L6-v2 embeddings of its ten likeliest classes' names, weighted by "
        "probability (ConSE, arXiv 1312.5650). A class is the embedding of its text.",
        "",
        f"The first {len(truth)} test pictures of Fashion-MNIST, ten classes: 28 x 28 grey pixels, enlarged to 224 x "
        "224, far from what the classifier was trained on. % right; OnZeta: the mean of "
        f"{ORDERS} orders of arrival, lowest and highest in brackets.",
        "",
        "| class text | " + " | ".join(columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for wording, labelled in results.items():
        row = labelled.accuracies(truth)
        cells = [f"{100 * row[column]:.1f}" for column in columns]
        cells[-1] += f" ({100 * min(labelled.online):.1f}–{100 * max(labelled.online):.1f})"
        lines.append(f"| {wording} | " + " | ".join(cells) + " |")
    lines += ["", "Packages: `" + "`, `".join(PACKAGES) + "` from PyPI, `dataset-fashion-mnist` from Debian."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="other numbers are printed, not written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    images, truth = fashion(options.images)
    space = ConseSpace()
    features = space.images(images)
    results = {
        wording: label(features, space.class_proxies(FASHION_NAMES, templates), truth, plain=PLAIN)
        for wording, templates in WORDINGS.items()
    }
    command = shlex.join(["python", "benchmarks/zero_shot_conse.py", *sys.argv[1:]])
    text = report(results, truth, command, time.perf_counter() - started)
    print(text)
    if options.images == 1000:
        (Path(__file__).parents[1] / "docs" / "zero_shot_conse.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
