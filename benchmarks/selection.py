"""Selection time: coverage affinity and greedy, ours against plain torch, side by side in one run.

    python benchmarks/selection.py                  all sizes, table to the screen and results/selection.md, plot
    python benchmarks/selection.py --quick          the three smallest sizes
    python benchmarks/selection.py --plot docs/selection.png
    python benchmarks/selection.py --methods        every pruning method whole, at two sizes, beside the affinity: the
                                                    last section of docs/selection.md

"plain" is the formula and the loop as one would write them in torch first: normalise, two products, two softmaxes;
then a full scan of the matrix per pick. Both sides take turns, each turn a block of consecutive calls, and figures
are medians. "whole" is affinity and greedy one after the other, as the server runs them. "same picks" says whether both
sides pick the same columns; where float32 rounding decides between columns of almost equal gain, it gives the relative
difference of the objectives instead. If there is a CUDA device, the same table is measured on it too, with events;
otherwise the run says so. About four minutes on two cores, nearly all of it plain torch.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from evaluation.variants import measured, measured_names
from torch.nn.functional import normalize

from covervlm.kernels import coverage_affinity, greedy_max_coverage, warm_up
from covervlm.pruners import Objective, PruneInput

SIZES = [(1, 576, 64), (1, 576, 192), (5, 576, 32), (1, 1024, 205), (1, 2880, 160), (1, 2880, 640), (1, 4096, 820)]
WIDTHS = (1024, 4096)
WORDS = 8
ROOT = Path(__file__).parents[1]
HEADING = "\n## Every method\n"
BATCH = 32
BLOCK_MS = 25


@dataclass(frozen=True)
class Row:
    """One size: medians in milliseconds."""

    items: int
    n: int
    k: int
    width: int
    plain_affinity: float
    affinity: float
    plain_greedy: float
    greedy: float
    whole: float
    same: str


def plain_affinity(text: torch.Tensor, tokens: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    z, x, v = (normalize(rows, dim=-1, eps=1e-8) for rows in (text, tokens, features))
    text_rows = (z @ x.mT / 0.02).softmax(-1) / z.shape[-2]
    vision_rows = (v @ v.mT / 0.2).softmax(-1) / v.shape[-2]
    return torch.cat([text_rows, 0.5 * vision_rows], dim=-2)


def plain_greedy(affinity: torch.Tensor, k: int) -> list[int]:
    covered = torch.zeros_like(affinity[:, :1])
    picks: list[int] = []
    for _ in range(k):
        gains = (affinity - covered).clamp(min=0).sum(0)
        gains[picks] = -1
        picks.append(int(gains.argmax()))
        covered = torch.maximum(covered, affinity[:, picks[-1:]])
    return picks


def scene(items: int, n: int, width: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Words, tokens and features whose neighbours resemble each other, as patches of a picture do."""
    generator = torch.Generator().manual_seed(n)
    themes = torch.randn(items, 24, width, generator=generator)
    mix = torch.rand(items, n, 24, generator=generator) ** 8
    patches = mix @ themes + 0.5 * torch.randn(items, n, width, generator=generator)
    words = themes[:, :WORDS] + torch.randn(items, WORDS, width, generator=generator)
    return words.to(device), patches.to(device), (patches + 0.1 * torch.randn_like(patches)).to(device)


def medians(
    calls: list[Callable[[], object]], device: str, turns: int, timer: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Milliseconds of each call; they take turns, so that the machine's noise affects all alike."""
    blocks = [[block(call, device, timer) for call in calls] for _ in range(turns)]
    return [statistics.median(of_call) for of_call in zip(*blocks, strict=True)]


def block(call: Callable[[], object], device: str, timer: Callable[[], float]) -> float:
    """Median of as many calls as fit in 25 ms, after a first one that warms the caches."""
    first = clock(call, device, timer)
    if first > BLOCK_MS:
        return first
    return statistics.median(clock(call, device, timer) for _ in range(max(3, round(BLOCK_MS / first))))


def clock(call: Callable[[], object], device: str, timer: Callable[[], float]) -> float:
    """Milliseconds of a call; by the timer on a CPU."""
    if device == "cpu":
        started = timer()
        call()
        return (timer() - started) * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def measure(items: int, n: int, k: int, width: int, device: str) -> Row:
    text, tokens, features = scene(items, n, width, device)
    matrix = coverage_affinity(text, tokens, features, check_finite=False)
    plain = plain_affinity(text, tokens, features)
    picks = greedy_max_coverage(matrix, k, check_finite=False)
    same = agreement(plain, [plain_greedy(one, k) for one in plain], picks.tolist())
    return Row(
        items,
        n,
        k,
        width,
        *medians(
            [
                lambda: plain_affinity(text, tokens, features),
                lambda: coverage_affinity(text, tokens, features, check_finite=False),
                lambda: [plain_greedy(one, k) for one in plain],
                lambda: greedy_max_coverage(matrix, k, check_finite=False),
                lambda: greedy_max_coverage(
                    coverage_affinity(text, tokens, features, check_finite=False), k, check_finite=False
                ),
            ],
            device,
            turns=7 if n < 2000 else 3,
        ),
        same,
    )


def agreement(matrices: torch.Tensor, left: list[list[int]], right: list[list[int]]) -> str:
    """`yes` if the picks are equal, else by how much the objectives that they reach differ."""
    if left == right:
        return "yes"
    reached = [
        sum(float(one[:, picks].amax(1).sum(dtype=torch.float64)) for one, picks in zip(matrices, side, strict=True))
        for side in (left, right)
    ]
    return f"objective differs by {abs(reached[1] / reached[0] - 1):.0e}"


def batch_ratio(device: str) -> float:
    """How many times the time of one batch of images their single calls take."""
    matrix = coverage_affinity(*scene(BATCH, 576, 1024, device), check_finite=False)
    singles, batch = medians(
        [
            lambda: [greedy_max_coverage(one, 64, check_finite=False) for one in matrix],
            lambda: greedy_max_coverage(matrix, 64, check_finite=False),
        ],
        device,
        turns=7,
    )
    return singles / batch


def methods_table(device: str) -> str:
    """Milliseconds of every method's own work at two sizes, and how many times MMTok's that is.

    On a CPU they are of the processor, all threads together, which other work on the machine hardly changes.
    `pick` alone, with the objective's affinity where a method builds on it; the coverage that a report gives of any
    method's choice takes the affinity's time on top.
    """
    names = [name for name in measured_names() if name != "none"]
    columns = [method_times(names, n, k, device) for n, k in ((576, 64), (2880, 160))]
    lines = ["| method | 576 -> 64 | times mmtok | 2,880 -> 160 | times mmtok |", "| --- | --- | --- | --- | --- |"]
    for row, name in enumerate(["(affinity)", *names]):
        cells = [f"{times[row]:.1f} | {times[row] / times[1 + names.index('mmtok')]:.2f}" for times in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def section(device: str, rows: str) -> str:
    """The last section of docs/selection.md."""
    unit = "processor time of one thread" if device == "cpu" else "by CUDA events"
    figures = (
        f"What each method's own picks take at d = 1,024 in milliseconds, {unit} (torch {torch.__version__}, "
        f"load average {os.getloadavg()[0]:.1f}), medians of turns in one run, beside the coverage affinity alone. "
        "Methods that build on the affinity (mmtok, the coverages) include it. `cdpruner_clip` is `cdpruner` with "
        '`relevance: "clip"`, without the text tower; `mmtok_cen` is no method of the server. Centring and CDPruner '
        "compute in double precision, which weighs most where there are few tokens."
    )
    command = "Written by\n\n    python benchmarks/selection.py --methods"
    return "\n\n".join([HEADING.rstrip(), command, figures, rows]) + "\n"


def method_times(names: list[str], n: int, k: int, device: str) -> list[float]:
    """Milliseconds of the affinity and of every method's picks."""
    text, tokens, features = (one[0] for one in scene(1, n, 1024, device))
    attention = torch.rand(n, generator=torch.Generator().manual_seed(0)).to(device)
    image = PruneInput(
        tokens, features, text, grid=(24, n // 24), cls_attention=attention / attention.sum(), clip_cosines=attention
    )
    calls: list[Callable[[], object]] = [lambda: coverage_affinity(text, tokens, features, check_finite=False)]
    calls += [partial(_picks, name, image, k) for name in names]
    return medians(calls, device, 7 if n < 2000 else 3, time.process_time)


def _picks(name: str, image: PruneInput, count: int) -> None:
    pruner = measured(name)
    builds_on_it = name in ("mmtok", "vision_coverage", "text_coverage")
    taus = {"tau_text": pruner.tau_text, "tau_vision": pruner.tau_vision, "alpha": pruner.alpha}
    pruner.pick([image], [count], Objective([image] if builds_on_it else [], **taus))


def table(rows: list[Row]) -> str:
    lines = [
        "| images x n -> k | d | affinity plain | affinity | greedy plain | greedy | greedy ratio | affinity ratio "
        "| whole / affinity | same picks |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        lines.append(
            f"| {r.items} x {r.n:,} -> {r.k} | {r.width} | {r.plain_affinity:.1f} | {r.affinity:.1f} "
            f"| {r.plain_greedy:.1f} | {r.greedy:.2f} | {r.plain_greedy / r.greedy:.0f}x "
            f"| {r.plain_affinity / r.affinity:.2f}x | {r.whole / r.affinity:.2f} "
            f"| {r.same} |"
        )
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    single = sorted((r for r in rows if r.items == 1 and r.width == WIDTHS[0]), key=lambda r: (r.n, r.k))
    largest = {r.n: r for r in single}
    figure, axes = plt.subplots(figsize=(6.5, 4.5))
    for name, label in (
        ("plain_greedy", "greedy, plain torch"),
        ("greedy", "greedy"),
        ("plain_affinity", "affinity, plain torch"),
        ("affinity", "affinity"),
    ):
        axes.loglog(list(largest), [getattr(r, name) for r in largest.values()], marker="o", label=label)
    axes.set_xlabel("vision tokens n (largest k measured at each)")
    axes.set_ylabel("milliseconds")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the three smallest sizes only")
    parser.add_argument("--plot", type=Path, default=Path("results/selection.png"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "selection.md", help="of --methods")
    parser.add_argument("--methods", action="store_true", help="time every pruning method, and nothing else")
    arguments = parser.parse_args()
    if arguments.methods:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        warm_up(device)
        torch.set_num_threads(1)
        text = section(device, methods_table(device))
        before = arguments.out.read_text(encoding="utf-8").partition(HEADING)[0]
        arguments.out.write_text(f"{before.rstrip()}\n{text}", encoding="utf-8")
        print(text)
        return
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    report = []
    for device in devices:
        warm_up(device)
        rows = []
        for items, n, k in SIZES[:3] if arguments.quick else SIZES:
            for width in WIDTHS:
                rows.append(measure(items, n, k, width, device))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
        title = f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}; milliseconds"
        ratio = f"{BATCH} images of 576 -> 64: single calls take {batch_ratio(device):.2f} times as long as one batch."
        report.append(f"{title}\n\n{table(rows)}\n\n{ratio}\n")
        if device == "cpu":
            plot(rows, arguments.plot)
    if devices == ["cpu"]:
        report.append("No CUDA device: the Triton kernels were not measured.\n")
    text = "\n".join(report)
    print("\n" + text)
    out = Path("results/selection.md")
    out.parent.mkdir(exist_ok=True)
    out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
