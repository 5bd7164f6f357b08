"""Results of single questions in a JSON-lines file, so that an interrupted run continues where it stopped."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from covervlm.server.tuning.lines import Lines
from covervlm.server.tuning.search import Cell

UNPRUNED = "none"
"""The method's name of the cell in which nothing is pruned."""


@dataclass(frozen=True)
class Record:
    """One answered question. `asked` tells how: "in-process" or "http"; `model` which weights."""

    model: str
    asked: str
    question: str
    method: str
    keep: int
    correct: bool
    answer: str | None = None

    @property
    def cell(self) -> Cell:
        return Cell(self.method, self.keep)


class Records:
    """The records of one model asked in one way, read from and appended to a file that may hold others as well."""

    def __init__(self, path: Path, model: str, asked: str) -> None:
        self.path, self.model, self.asked = path, model, asked
        self._known: dict[tuple[str, Cell], Record] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lines = Lines(path)
        for line in self._lines.found:
            try:
                record = Record(**json.loads(line))
            except (json.JSONDecodeError, TypeError):
                continue  # a line that an older run was killed while writing
            if (record.model, record.asked) == (model, asked):
                self._known[record.question, record.cell] = record

    def __contains__(self, key: tuple[str, Cell]) -> bool:
        return key in self._known

    def __getitem__(self, key: tuple[str, Cell]) -> Record:
        return self._known[key]

    def add(self, question: str, cell: Cell, correct: bool, answer: str | None = None) -> None:
        """Append one answer and write it to disk at once."""
        record = Record(self.model, self.asked, question, cell.method, cell.keep, correct, answer)
        self._known[question, cell] = record
        self._lines.add(asdict(record))
