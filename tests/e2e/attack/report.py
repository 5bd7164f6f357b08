"""The figures of all attacks as a table in Markdown."""

from pathlib import Path

from tests.e2e.attack.figures import HEALTH, SHARE, Figures
from tests.e2e.attack.measure import BACK, INFLIGHT, KEPT, MIB, WORKING

HEAD = (
    f"(a) /health within {HEALTH * 1000:.0f} ms; (b) others keep {SHARE:.0%} of their requests a second; "
    f"(c) memory beyond the idle server's within {INFLIGHT // MIB} + {WORKING // MIB} MiB; "
    f"(d) all given back within {BACK:.0f} s, memory to within {KEPT // MIB} MiB.\n\n"
    "| Attack | /health ms: p50 / p99 / max (excused) | others: kept, of requests/s (slowest s) | MiB: peak, gauge "
    "| after: MiB, s, threads, files, tasks | other programs: cores | answers | verdict |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)


class Report:
    """One row for each attack, in the order in which they were tried; kept in a file as it grows."""

    def __init__(self, path: Path) -> None:
        self.rows: list[str] = []
        self._path = path

    def add(self, figures: Figures) -> None:
        f = figures
        excused = f" ({f.excused:.0f})" if f.excused else ""
        tries = "".join(f"; before: {worst:.0f} ms, {kept:.0%}" for worst, kept in f.earlier)
        verdict = "; ".join(f"**{letter}** {text}" for letter, text in sorted(f.problems.items())) or "holds"
        self.rows.append(
            f"| {f.name} | {f.p50:.0f} / {f.p99:.0f} / {f.worst:.0f}{excused} "
            f"| {f.kept:.0%} of {f.before:.1f} ({f.slowest:.1f}) | {f.peak:.0f}, {f.gauge:.0f} "
            f"| {f.left:.0f}, {f.back:.1f}, {f.threads:+d}, {f.files:+d}, {f.tasks:+d} "
            f"| {f.others:.1f} | {f.answers} | {verdict}{tries} |"
        )
        self._path.parent.mkdir(exist_ok=True)
        self._path.write_text(f"{self.text()}\n")

    def leave_out(self, name: str, reason: str) -> None:
        self.rows.append(f"| {name} | | | | | | | left out: {reason} |")

    def text(self) -> str:
        return "\n".join([HEAD, *self.rows])
