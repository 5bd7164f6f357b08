"""Methods that learn on frozen features, each against its baselines: tables and a plot for docs/features.md.

    python benchmarks/features.py                  all of them but speed, job and observe
    python benchmarks/features.py --only tail      one table anew, in place of the one in docs
    python benchmarks/features.py --only speed     one fit at full size; run it on an idle machine, with --threads 2
    python benchmarks/features.py --only job       all fits of a job; printed alone, as speed
    python benchmarks/features.py --only observe   CoKe by 64 images, alone and as a server's stream; so too
    python benchmarks/features.py --only speed --images 5000

Every figure is a mean over seeds, which draw the examples and start the methods; differences are paired by seed, with
95 % intervals by Student's t.
"""

import argparse
import os
import re
import time
from pathlib import Path

import torch
from frozen.grouping import aspects, sizes, words
from frozen.labels import automatic, few_labels, tail, uneven_groups
from frozen.observed import observe
from frozen.search import coarse_labels, retrieval
from frozen.speed import job, speed
from frozen.streams import imbalance

TABLES = {
    table.__name__: table
    for table in (
        few_labels,
        automatic,
        tail,
        uneven_groups,
        retrieval,
        coarse_labels,
        sizes,
        imbalance,
        aspects,
        words,
    )
}
SPEEDS = {table.__name__: table for table in (speed, job, observe)}
PAGE = Path(__file__).parents[1] / "docs" / "features.md"
HEAD = """# What methods on frozen features are worth

Each table is measured by `python benchmarks/features.py`, or alone by `--only` and its name, on one CPU thread. Noisy
scenes: 800 single objects drawn by the project under noise, 64 classes (shape and colour), seen by the demo CLIP, which
is a small space and not one of photographs. Digits: scikit-learn's 1,797 pictures of 8 x 8 pixels as they are, scaled
to unit length; they have no text. In brackets: the difference to the baseline, paired over five seeds, with its 95 %
interval; **where the interval holds 0, the method has not been shown to help**, and below 0 it does harm. The seconds
under a table do not count features of pictures that an earlier run has kept: 0.1 for a picture.

![Accuracy by labels for each class](features.png)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*TABLES, *SPEEDS], help="these tables alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=50_000, help="of speed, job and observe")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.only or TABLES:
        begun = time.process_time()
        lines = TABLES[name]() if name in TABLES else SPEEDS[name](options.images)
        took = f"`--only {name}`: {time.process_time() - begun:.0f} seconds of one core, torch {torch.__version__}."
        text = "\n".join([*lines, took, ""])
        print(text, f"load average {os.getloadavg()[0]:.1f}", flush=True)
        if name in TABLES:
            known = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
            found = dict(re.findall(r"<!-- (\w+) -->\n(.*?)(?=\n<!-- |\Z)", known, re.DOTALL)) | {name: text}
            sections = [f"<!-- {one} -->\n{found[one]}" for one in TABLES if one in found]
            PAGE.write_text("\n".join([HEAD, *sections]), encoding="utf-8")


if __name__ == "__main__":
    main()
