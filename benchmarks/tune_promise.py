"""Does what `covervlm tune` states hold on questions that it never saw?

    python benchmarks/tune_promise.py

Questions about the demo's scenes are answered once, unpruned and with every budget, in this process. Then, with one
seed after the other, some are given to the search as a user's own, and its recommendation is held against others. An
interval from few questions, held against a share of few others, misses more often than one held against the truth: the
others' own chance is no fault of it. So it is held against all other questions too.
"""

import argparse
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from evaluation.in_process import InProcess
from evaluation.question_sets import Item, question_set
from evaluation.records import UNPRUNED, Cell, Records
from quality import answer, fingerprint, missing, vision_tokens

from covervlm.server.demo import model_path
from covervlm.server.tuning import search
from covervlm.server.tuning.intervals import Estimate, share_interval

Right = Callable[[Item, Cell], bool]


@dataclass(frozen=True)
class Repetition:
    """One recommendation. stated: accuracy on the questions that led to it. seen: on others; everywhere: on all others.

    loss, most: what is lost against the unpruned model on the others, and the bound that was stated. asked, grid:
    answers that the search needed, and all that there are.
    """

    keep: int | None
    asked: int
    grid: int
    stated: Estimate | None = None
    seen: float = 0.0
    everywhere: float = 0.0
    loss: float = 0.0
    most: float = 0.0

    @property
    def holds(self) -> bool:
        return self.stated is not None and self.stated.low <= self.seen <= self.stated.high

    @property
    def holds_everywhere(self) -> bool:
        return self.stated is not None and self.stated.low <= self.everywhere <= self.stated.high


def repetition(
    items: Sequence[Item], cells: Sequence[Cell], right: Right, *, own: int, others: int, tolerance: float, seed: int
) -> Repetition:
    """Scenes are drawn by the seed; those of the own questions are not among the others'."""
    unpruned, *pruned = cells
    scenes = sorted({item.seed for item in items})
    random.Random(seed).shuffle(scenes)
    place = {scene: number for number, scene in enumerate(scenes)}
    drawn = sorted(items, key=lambda item: (place[item.seed], item.kind))
    given = drawn[:own]
    unseen = [item for item in drawn if place[item.seed] > place[given[-1].seed]]
    asked: set[tuple[int, Cell]] = set()
    methods = list(dict.fromkeys(cell.method for cell in pruned))
    budgets = sorted({cell.keep for cell in pruned})
    plan = search.Plan([item.seed for item in given], methods, budgets, tolerance, seed)
    standings = search.search(
        plan, asked.update, lambda number, cell: (right(given[number], unpruned), right(given[number], cell))
    )
    cost = len(given) + len(asked), len(given) * len(cells)
    best = search.recommended(standings, tolerance)
    if best is None:
        return Repetition(None, *cost)
    cell = best.cell
    stated = share_interval([right(item, cell) for item in given], [item.seed for item in given])
    seen, everywhere, before = (
        sum(right(item, which) for item in some) / len(some)
        for some, which in ((unseen[:others], cell), (unseen, cell), (unseen[:others], unpruned))
    )
    return Repetition(cell.keep, *cost, stated, seen, everywhere, before - seen, best.loss.high)


def report(done: Sequence[Repetition], others: int, seconds: float, answers: int) -> str:
    """A table of the repetitions, and what they come to. seconds: what all answers took."""
    lines = [
        f"| seed | kept | accuracy stated | on {others} others | on all others | lost | bound stated | answers |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for seed, one in enumerate(done):
        cells = ["nothing recommended", *[""] * 5]
        if one.stated is not None:
            interval = f"{one.stated.value:.1%} ({one.stated.low:.1%} to {one.stated.high:.1%})"
            cells = [str(one.keep), interval, f"{one.seen:.1%}", f"{one.everywhere:.1%}"]
            cells += [f"{100 * one.loss:.1f}", f"{100 * one.most:.1f}"]
        lines.append(f"| {seed} | {' | '.join(cells)} | {one.asked} of {one.grid} |")
    made = [one for one in done if one.stated is not None]
    asked, grid = (sum(getattr(one, name) for one in done) for name in ("asked", "grid"))
    each = seconds / max(1, answers)
    said = (
        f"{len(made)} of {len(done)} repetitions recommend a budget. The accuracy on {others} others is within the "
        f"stated interval in {sum(one.holds for one in made)} of these, that on all others in "
        f"{sum(one.holds_everywhere for one in made)}; the loss is below the stated bound in "
        f"{sum(one.loss < one.most for one in made)}. The search needs {asked / grid:.0%} of the whole grid's answers: "
        f"at {1000 * each:.0f} ms each here, {each * asked / len(done):.0f} instead of {each * grid / len(done):.0f} s."
    )
    return "\n".join([*lines, "", said])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=int, default=2400, help="questions that are answered (default: 2400)")
    parser.add_argument("--own", type=int, default=300, help="given to the search (default: 300)")
    parser.add_argument("--others", type=int, default=600, help="held against it (default: 600)")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--tolerance", type=float, default=5, help="points (default: 5)")
    parser.add_argument("--budgets", type=int, nargs="+", default=[192, 64, 16, 4])
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/tune_promise.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cells = [Cell(UNPRUNED, vision_tokens(model_path()))] + [Cell("mmtok", keep) for keep in arguments.budgets]
    items = question_set("standard", arguments.pool, split="tuning")
    records = Records(arguments.results, fingerprint(model_path()), "in-process")
    wanted, started = missing(items, cells, records), time.perf_counter()
    if wanted:
        answer(InProcess(model_path(), ["mmtok"]), wanted, records)
    seconds, answers = time.perf_counter() - started, sum(len(open_cells) for _, open_cells in wanted)
    done = [
        repetition(
            items,
            cells,
            lambda item, cell: records[item.key, cell].correct,
            own=arguments.own,
            others=arguments.others,
            tolerance=arguments.tolerance / 100,
            seed=seed,
        )
        for seed in range(arguments.repetitions)
    ]
    print(report(done, arguments.others, seconds, answers))


if __name__ == "__main__":
    main()
