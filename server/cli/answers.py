"""Answers that a search was given, in a file that survives whatever ends the program."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from covervlm.server.cli.errors import USAGE, CommandError, file_errors
from covervlm.server.tuning.search import Cell
from covervlm.server.tuning.trial import Given, Question


class Answers:
    """JSON Lines: first what all answers have in common, then one a line. A cell of None is the unpruned model.

    Raises CommandError for a file with other things in common, and for one that cannot be read or written.
    """

    def __init__(self, path: Path, common: Mapping[str, Any]) -> None:
        self._path, self.common = path, dict(common)
        self._known: dict[tuple[str, str, Cell | None], Given] = {}
        with file_errors(path):
            self._file = path.open("ab+", buffering=0)
            self._file.seek(0)
            data = self._file.read()
            # What follows the last whole line was cut off when a program was killed.
            self._file.truncate(data.rfind(b"\n") + 1)
        lines = data[: data.rfind(b"\n") + 1].splitlines()
        try:
            first, *rest = [json.loads(line) for line in lines] or [self.common]
            for entry in rest:
                cell = entry["method"] and Cell(entry["method"], entry["keep"])
                self._known[entry["image"], entry["question"], cell] = Given(**entry["given"])
        except (ValueError, KeyError, TypeError):
            raise CommandError(f"{path} is no file of answers; move it away", USAGE) from None
        if first != self.common:
            raise CommandError(f"{path} has answers of another run, {first}, not {self.common}; move it away", USAGE)
        if not lines:
            self._write(common)

    def get(self, question: Question, cell: Cell | None) -> Given | None:
        return self._known.get((question.image, question.text, cell))

    def add(self, question: Question, cell: Cell | None, given: Given) -> None:
        self._known[question.image, question.text, cell] = given
        method, keep = (cell.method, cell.keep) if cell else (None, None)
        asked = {"image": question.image, "question": question.text, "method": method, "keep": keep}
        self._write({**asked, "given": asdict(given)})

    def close(self) -> None:
        self._file.close()

    def _write(self, entry: Mapping[str, Any]) -> None:
        with file_errors(self._path):
            self._file.write(json.dumps(entry).encode() + b"\n")
