"""What a part of the benchmark hands back: a small table and a sentence on how it was measured."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """columns: headings. rows: as many cells each. note: how it was measured, and what it stands beside.

    problem: what is not as it must be, which fails the part.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str
    problem: str = ""

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), "", self.note])
