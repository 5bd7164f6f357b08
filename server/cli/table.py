"""A table that grows row by row, as CSV or Parquet: rows that it has survive whatever ends the program."""

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from covervlm.server.cli.errors import USAGE, CommandError, file_errors

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""What spreadsheets take for the beginning of a formula, which an apostrophe before it undoes."""


class Table(Protocol):
    """Rows with a cell for every column; the first column is their name. Every method may raise CommandError."""

    names: set[str]

    def add(self, row: Sequence[Any]) -> None:
        """Keep a row, whose values are as in JSON."""

    def close(self) -> None:
        """Complete the file."""


def open_table(path: Path, columns: Sequence[str]) -> Table:
    """The table in a file, which may hold rows already. Raises CommandError for one with other columns."""
    match path.suffix.lower():
        case ".csv":
            return CsvTable(path, columns)
        case ".parquet":
            return ParquetTable(path, columns)
    raise CommandError(f"{path}: the name of a table ends in .csv or .parquet", USAGE)


def cell(value: Any) -> str:
    """Text as it is, nothing for null, and all else as JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def guarded(value: Any) -> str:
    """The cell of a value, with an apostrophe before a text that a spreadsheet would compute."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else cell(value)


def _unguarded(text: str) -> str:
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


class CsvTable:
    """Every row is in the file as soon as it is added."""

    def __init__(self, path: Path, columns: Sequence[str], spelt: Callable[[Any], str] = guarded) -> None:
        self._path, self._spelt = path, spelt
        with file_errors(path):
            self._file = path.open("ab+", buffering=0)
            self._file.seek(0)
            data = self._file.read()
            # What follows the last whole row was cut off when a program was killed.
            self._file.truncate(whole := _whole(data))
        heading = [guarded(name) for name in columns]
        rows = list(csv.reader(io.StringIO(data[:whole].decode("utf-8-sig", "replace"), newline="")))
        if not rows:
            self._write(heading)
        elif rows[0] != heading:
            raise CommandError(f"{path} is a table of other columns: {', '.join(rows[0])}", USAGE)
        self.rows = rows[1:]
        self.names = {_unguarded(row[0]) for row in self.rows if row}

    def add(self, row: Sequence[Any]) -> None:
        self._write([self._spelt(value) for value in row])

    def close(self) -> None:
        self._file.close()

    def _write(self, cells: Sequence[str]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\r\n").writerow(cells)  # quotes what holds either of the two
        with file_errors(self._path):
            self._file.write(f"{line.getvalue()[:-2]}\n".encode(errors="replace"))


class ParquetTable:
    """Rows are kept in a CSV file of JSON cells beside the table, which is written when it is closed."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        try:
            import pyarrow.parquet
        except ImportError:
            message = "Parquet needs pyarrow; get it with: pip install pyarrow, or choose a name that ends in .csv"
            raise CommandError(message, USAGE) from None
        self._arrow: Any = pyarrow
        self._path, self._columns, self._rows = path, list(columns), list[Sequence[Any]]()
        if path.exists():
            with file_errors(path):
                known = pyarrow.parquet.read_table(path)
            if known.column_names != self._columns:
                raise CommandError(f"{path} is a table of other columns: {', '.join(known.column_names)}", USAGE)
            self._rows += [list(row.values()) for row in known.to_pylist()]
        self._kept = path.with_name(f"{path.name}.rows")
        self._new = CsvTable(self._kept, columns, json.dumps)
        self._rows += [[json.loads(text) for text in row] for row in self._new.rows]
        self.names = {row[0] for row in self._rows}

    def add(self, row: Sequence[Any]) -> None:
        self._new.add(row)
        self._rows.append(row)

    def close(self) -> None:
        self._new.close()
        columns = {name: self._column([row[place] for row in self._rows]) for place, name in enumerate(self._columns)}
        new = self._path.with_name(f"{self._path.name}.new")
        with file_errors(self._path):
            self._arrow.parquet.write_table(self._arrow.table(columns), new)
            new.replace(self._path)
            self._kept.unlink()

    def _column(self, values: list[Any]) -> Any:
        """Numbers, truth values or texts, as they are; of other values and of a mixture, their texts as in CSV."""
        plain = [json.dumps(value) if isinstance(value, dict | list) else value for value in values]
        try:
            return self._arrow.array(plain)
        except (self._arrow.ArrowInvalid, self._arrow.ArrowTypeError, OverflowError):
            return self._arrow.array([None if value is None else cell(value) for value in plain])


def _whole(data: bytes) -> int:
    """The bytes up to the end of the last whole row: one that ends a line outside of quotes."""
    whole = position = quotes = 0
    for line in io.BytesIO(data):
        position += len(line)
        quotes += line.count(b'"')
        if line.endswith(b"\n") and quotes % 2 == 0:
            whole = position
    return whole
