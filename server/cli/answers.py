"""Answers that a search was given, in a file that survives whatever ends the program."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from covervlm.server.cli.errors import USAGE, CommandError, file_errors
from covervlm.server.cli.pace import Pace
from covervlm.server.tuning.lines import Lines
from covervlm.server.tuning.search import Cell
from covervlm.server.tuning.trial import Given, Question


class Answers:
    """JSON Lines: first what all answers have in common, then one a line. A cell of None is the unpruned model.

    Raises CommandError for a file with other things in common, and for one that cannot be read or written.
    """

    def __init__(self, path: Path, common: Mapping[str, Any]) -> None:
        self.path, self.common = path, dict(common)
        self._known: dict[tuple[str, str, Cell | None], Given] = {}
        self._paces: dict[Cell, Pace] = {}
        with file_errors(path):
            self._lines = Lines(path)
        try:
            first, *rest = [json.loads(line) for line in self._lines.found] or [self.common]
            for entry in rest:
                cell = entry["method"] and Cell(entry["method"], entry["keep"])
                if "pace" in entry:
                    self._paces[cell] = Pace(*map(tuple, entry["pace"]))
                    continue
                self._known[entry["image"], entry["question"], cell] = Given(**entry["given"])
        except (ValueError, KeyError, TypeError):
            raise CommandError(f"{path} is not a file of answers; move it away, or choose another -o", USAGE) from None
        if first != self.common:
            raise CommandError(f"{path} has answers of another run ({first}, now {self.common}); move it away", USAGE)
        if not self._lines.found:
            self._write(common)

    def get(self, question: Question, cell: Cell | None) -> Given | None:
        return self._known.get((question.image, question.text, cell))

    def add(self, question: Question, cell: Cell | None, given: Given) -> None:
        self._known[question.image, question.text, cell] = given
        method, keep = (cell.method, cell.keep) if cell else (None, None)
        asked = {"image": question.image, "question": question.text, "method": method, "keep": keep}
        self._write({**asked, "given": asdict(given)})

    def pace(self, cell: Cell, measure: Callable[[], Pace]) -> Pace:
        """A cell's speed beside the unpruned model's, measured unless that was done."""
        if cell not in self._paces:
            self._paces[cell] = pace = measure()
            self._write({"method": cell.method, "keep": cell.keep, "pace": [pace.first, pace.rate]})
        return self._paces[cell]

    def close(self) -> None:
        self._lines.close()

    def _write(self, entry: Mapping[str, Any]) -> None:
        with file_errors(self.path):
            self._lines.add(entry)
