"""All that waits for a GPU, measured in under nine minutes: kernels, selection, equality of answers, speed.

    make gpu                                          on the GPU of this machine, if it has one
    python benchmarks/gpu --parts gpu.graphs          some parts alone, by their modules

With a CUDA device the tables of all parts go to docs/gpu.md. Without one the same parts run in Triton's interpreter on
tiny sizes, which shows that they run and nothing else; these tables, and those of some parts alone, go to
results/gpu.md. A part that fails, or is not done in its
time, is reported with its error, the others go on, and the exit status is 1. Needs no network.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # In place of this folder, so that the parts are imported as gpu.something.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

from gpu.device import INTERPRETED, described
from gpu.parts import Outcome, Part, parts, run
from gpu.sizes import FULL, TINY

ROOT = Path(__file__).resolve().parents[2]
TRIAL, MEASURED = ROOT / "results" / "gpu.md", ROOT / "docs" / "gpu.md"


def report(machine: str, outcomes: Sequence[Outcome], seconds: float) -> str:
    """The page: the machine, then every part's table or error."""
    sections = [f"# On a GPU\nBy `make gpu`, in {seconds:.0f} s. {machine}"]
    for one in outcomes:
        texts = [f"Failed: {one.error}"] if one.error else []
        texts += [] if one.table is None else [one.table.markdown()]
        sections.append(f"## {one.part.title}\n" + "\n\n".join(texts).rstrip())
    return "\n\n".join(sections) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", help="only these, by their modules (default: all)")
    parser.add_argument("--out", type=Path, help="the page to write")
    parser.add_argument("--seconds", type=float, default=520, help="for everything together (default: 520)")
    arguments = parser.parse_args(argv)
    sizes = TINY if INTERPRETED else FULL
    chosen = [part for part in parts(sizes) if arguments.parts is None or part.module in arguments.parts]
    started, machine = time.monotonic(), described()
    outcomes: list[Outcome] = []
    out = arguments.out or (TRIAL if INTERPRETED or arguments.parts else MEASURED)
    out.parent.mkdir(parents=True, exist_ok=True)
    print(machine, flush=True)
    for part in chosen:
        left = arguments.seconds - (time.monotonic() - started)
        outcomes.append(run(part, sizes, _allowed(part, left)))
        print(_line(outcomes[-1]), flush=True)
        # Written after every part: a run that is cut short keeps what it has measured.
        out.write_text(report(machine, outcomes, time.monotonic() - started))
    print(f"\n{out.read_text()}")
    return int(any(one.error for one in outcomes))


def _allowed(part: Part, left: float) -> float:
    """The interpreter takes its time, and more on a busy machine."""
    return left if INTERPRETED else max(0.0, min(part.seconds, left))


def _line(outcome: Outcome) -> str:
    return f"{outcome.part.title}: {outcome.error or 'done'} ({outcome.seconds:.0f} s)"


if __name__ == "__main__":
    sys.exit(main())
