"""Results of single questions in a JSON-lines file, so that an interrupted run continues where it stopped."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

UNPRUNED = "none"
"""The method's name of the cell in which nothing is pruned."""


@dataclass(frozen=True)
class Cell:
    """One column of the benchmark: a method with the number of vision tokens it keeps."""

    method: str
    keep: int


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
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for line in text.splitlines():
            try:
                record = Record(**json.loads(line))
            except (json.JSONDecodeError, TypeError):
                continue  # the line that a run was killed while writing
            if (record.model, record.asked) == (model, asked):
                self._known[record.question, record.cell] = record
        self._file = path.open("a", encoding="utf-8")
        if text and not text.endswith("\n"):
            self._file.write("\n")

    def __contains__(self, key: tuple[str, Cell]) -> bool:
        return key in self._known

    def __getitem__(self, key: tuple[str, Cell]) -> Record:
        return self._known[key]

    def add(self, question: str, cell: Cell, correct: bool, answer: str | None = None) -> None:
        """Append one answer and write it to disk at once."""
        record = Record(self.model, self.asked, question, cell.method, cell.keep, correct, answer)
        self._known[question, cell] = record
        self._file.write(json.dumps(asdict(record)) + "\n")
        self._file.flush()
