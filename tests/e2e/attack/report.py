"""The figures of all attacks as a table in Markdown."""

from pathlib import Path

from tests.e2e.attack.figures import HEALTH, SHARE, Figures
from tests.e2e.attack.measure import BACK, KEPT, MIB, TRIES, WORKING
from tests.e2e.attack.target import INFLIGHT

HEAD = (
    f"(a) /health within {HEALTH * 1000:.0f} ms; (b) others keep {SHARE:.0%} of the throughput that they have "
    "while the attacker sends as much to nobody (in brackets what part of the quiet throughput that is); "
    f"(c) memory beyond the idle server's within {INFLIGHT // MIB} + {WORKING // MIB} MiB; "
    f"(d) all given back within {BACK:.0f} s, memory to within {KEPT // MIB} MiB. What misses (a) or (b) is measured "
    f"{TRIES} times, or twice where both miss the same, all of which are told, and judged by the medians.\n\n"
    "| Attack | /health ms: p50 / p99 / max (excused) | others: kept (control), of requests/s (slowest s) "
    "| MiB: peak, gauge | after: MiB, s, threads, files, tasks | cores: server, attacker, caller, other programs "
    "| connections, bytes | seconds | answers | verdict |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


class Report:
    """One row for each attack, in the order in which they were tried; kept in a file as it grows.

    machine: what is said of the machine above the table.
    """

    def __init__(self, path: Path, machine: str) -> None:
        self.rows: list[str] = []
        self._path = path
        self._machine = machine

    def add(self, figures: Figures) -> None:
        f = figures
        excused = f" ({f.excused:.0f})" if f.excused else ""
        tries = "".join(f"; {slow:.0f} ms, {kept:.0%}" for slow, kept in f.tries)
        verdict = "; ".join(f"**{letter}** {text}" for letter, text in sorted(f.problems.items())) or "holds"
        cores = ", ".join(f"{value:.2f}" for value in f.cores.values())
        self.rows.append(
            f"| {f.name} | {f.p50:.0f} / {f.p99:.0f} / {f.worst:.0f}{excused} "
            f"| {f.kept:.0%} ({f.control:.0%}) of {f.before:.1f} ({f.slowest:.1f}) | {f.peak:.0f}, {f.gauge:.0f} "
            f"| {f.left:.0f}, {f.back:.1f}, {f.threads:+d}, {f.files:+d}, {f.tasks:+d} "
            f"| {cores} | {f.traffic} | {f.took:.1f} | {f.answers} | {verdict}{tries} |"
        )
        self._path.parent.mkdir(exist_ok=True)
        self._path.write_text(f"{self.text()}\n")

    def leave_out(self, name: str, reason: str) -> None:
        self.rows.append(f"| {name} | | | | | | | | | left out: {reason} |")

    def text(self) -> str:
        return "\n".join([f"{self._machine}\n", HEAD, *self.rows])
