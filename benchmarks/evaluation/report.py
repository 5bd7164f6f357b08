"""The benchmark's outcome as Markdown tables and one plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from covervlm.server.tuning.comparison import compare
from covervlm.server.tuning.intervals import Estimate, share_interval
from evaluation.question_sets import Item
from evaluation.records import UNPRUNED, Cell, Records
from evaluation.significance import SceneBootstrap, holm

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class SetResults:
    """All answers about one set: for every cell the list of right and wrong, in the order of `items`."""

    name: str
    items: Sequence[Item]
    correct: dict[Cell, list[bool]]
    total: int

    @classmethod
    def of(cls, name: str, items: Sequence[Item], cells: Sequence[Cell], records: Records, total: int) -> "SetResults":
        correct = {cell: [records[item.key, cell].correct for item in items] for cell in cells}
        return cls(name, items, correct, total)

    @property
    def unpruned(self) -> list[bool]:
        return self.correct[Cell(UNPRUNED, self.total)]

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(cell.method for cell in self.correct if cell.method != UNPRUNED))

    @property
    def budgets(self) -> list[int]:
        return sorted({cell.keep for cell in self.correct if cell.method != UNPRUNED}, reverse=True)

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(item.kind for item in self.items))

    def of_kind(self, kind: str, correct: Sequence[bool]) -> list[bool]:
        return [c for item, c in zip(self.items, correct, strict=True) if item.kind == kind]

    def accuracy(self, correct: Sequence[bool]) -> Estimate:
        """The share of right answers."""
        return share_interval(correct, [item.seed for item in self.items])

    def bootstrap(self) -> SceneBootstrap:
        return SceneBootstrap([item.seed for item in self.items])


def _table(corner: str, columns: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join([corner, *map(str, columns)]) + " |", "|---" * (len(columns) + 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def accuracy_table(results: SetResults) -> str:
    """Accuracy with its interval, methods by budgets."""
    rows: list[list[str]] = []
    for method in results.methods:
        cells = [_percent(results.accuracy(results.correct[Cell(method, k)])) for k in results.budgets]
        rows.append([method, *cells])
    return _table("method", results.budgets, rows)


def retention_table(results: SetResults) -> str:
    """Accuracy relative to the unpruned model, in percent."""
    bootstrap = results.bootstrap()
    rows: list[list[str]] = []
    for method in results.methods:
        cells = [results.correct[Cell(method, k)] for k in results.budgets]
        rows.append([method, *[_percent(bootstrap.retention(cell, results.unpruned)) for cell in cells]])
    return _table("method", results.budgets, rows)


def comparison_table(results: SetResults, first: str) -> str:
    """Accuracy of `first` minus that of every other method in points; a star where it is significant."""
    others = [method for method in results.methods if method != first]
    pairs = [(other, k) for other in others for k in results.budgets]
    outcomes = [compare(results.correct[Cell(first, k)], results.correct[Cell(other, k)]) for other, k in pairs]
    adjusted = dict(zip(pairs, holm([outcome.p for outcome in outcomes]), strict=True))
    by_pair = dict(zip(pairs, outcomes, strict=True))

    def show(other: str, k: int) -> str:
        outcome = by_pair[other, k]
        star = "*" if adjusted[other, k] < SIGNIFICANT else ""
        return f"{100 * outcome.difference:+.1f}{star} ({outcome.only_first}:{outcome.only_second}, p {outcome.p:.2g})"

    return _table(
        f"{first} minus", results.budgets, [[other, *[show(other, k) for k in results.budgets]] for other in others]
    )


def kind_table(results: SetResults, kind: str) -> str:
    """Accuracy on one kind of question, methods by budgets."""
    rows: list[list[str]] = []
    for method in results.methods:
        shares = [results.of_kind(kind, results.correct[Cell(method, k)]) for k in results.budgets]
        rows.append([method, *[f"{100 * sum(share) / len(share):.1f}" for share in shares]])
    return _table("method", results.budgets, rows)


def section(results: SetResults) -> str:
    """Everything about one set of questions."""
    whole = _percent(results.accuracy(results.unpruned))
    per_kind = []
    for kind in results.kinds:
        share = results.of_kind(kind, results.unpruned)
        per_kind.append(f"{kind} {100 * sum(share) / len(share):.1f}")
    parts = [
        f"## {results.name.capitalize()} scenes",
        f"{len(results.items)} questions about {len({item.seed for item in results.items})} scenes. "
        f"Unpruned ({results.total} tokens): **{whole}**; {', '.join(per_kind)}.",
        "Accuracy in percent, by vision tokens kept:",
        accuracy_table(results),
        "Relative to the unpruned model, in percent:",
        retention_table(results),
    ]
    if "mmtok" in results.methods and len(results.methods) > 1:
        parts += [
            "MMTok against the others on the same questions: difference in points, in brackets the questions that only "
            "MMTok : only the other gets right and the p-value of McNemar's exact two-sided test. A star marks p < "
            f"{SIGNIFICANT} after Holm's correction for all comparisons of this table.",
            comparison_table(results, "mmtok"),
        ]
    for kind in results.kinds:
        parts += [f"Questions of kind `{kind}`:", kind_table(results, kind)]
    return "\n\n".join(parts)


def write_markdown(path: Path, header: str, results: Sequence[SetResults]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join([header, *map(section, results)]) + "\n", encoding="utf-8")


def write_plot(path: Path, results: Sequence[SetResults]) -> None:
    """One panel per set: accuracy against tokens kept, with 95 % intervals."""
    figure, panels = plt.subplots(1, len(results), figsize=(6.2 * len(results), 4.6), squeeze=False)
    for panel, result in zip(panels[0], results, strict=True):
        budgets = result.budgets[::-1]
        for i, method in enumerate(result.methods):
            estimates = [result.accuracy(result.correct[Cell(method, k)]) for k in budgets]
            style = {"color": f"C{i}", "marker": "os^Dv<>ph"[i % 9], "markersize": 4}
            width = 2.4 if method == "mmtok" else 1.3
            panel.plot(budgets, [100 * e.value for e in estimates], label=method, linewidth=width, **style)
            low, high = [100 * e.low for e in estimates], [100 * e.high for e in estimates]
            panel.fill_between(budgets, low, high, color=f"C{i}", alpha=0.10, linewidth=0)
        whole = result.accuracy(result.unpruned)
        panel.axhline(100 * whole.value, color="black", linewidth=1, linestyle="--", label=f"unpruned ({result.total})")
        panel.set_xscale("log", base=2)
        panel.set_xticks(budgets, [str(k) for k in budgets])
        panel.set_xlabel("vision tokens kept")
        panel.set_ylabel("right answers, %")
        panel.set_title(f"{result.name} scenes, {len(result.items)} questions a point")
        panel.grid(alpha=0.25)
    panels[0][-1].legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
