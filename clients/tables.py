"""Tables of labels that users have: CSV, or with pyarrow Parquet."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

Table: TypeAlias = dict[str, list[str]]
"""Cells by the name of their column, nothing where there is none."""

Labels: TypeAlias = Sequence[str] | os.PathLike[str]
"""Labels one by one, or the path of a table with them, which may have groups and ids as well."""


def read_table(path: str | os.PathLike[str]) -> Table:
    """The columns of a file that ends in .csv or .parquet, as texts. ValueError where it is none."""
    path = Path(path)
    match path.suffix.lower():
        case ".csv":
            return _read_csv(path)
        case ".parquet":
            return _read_parquet(path)
    raise ValueError(f"{path}: the name of a table ends in .csv or .parquet")


def labels_in(path: str | os.PathLike[str]) -> Table:
    """The columns `label` and, if any, `group` and `id` of such a file."""
    table = read_table(path)
    if "label" not in table:
        raise ValueError(f"{os.fspath(path)} has no column 'label'")
    return {name: cells for name, cells in table.items() if name in ("label", "group", "id")}


def csv_text(table: Table) -> str:
    """It as CSV, the names of the columns first."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([list(table), *zip(*table.values(), strict=True)])
    return text.getvalue()


def _read_csv(path: Path) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        try:
            names = next(rows, [])
            table: Table = {name: [] for name in names}
            for row in rows:
                if row and len(row) != len(table):
                    raise ValueError(f"it has {len(row)} cells, and the first line names {len(table)} columns")
                for name, cell in zip(names, row, strict=False):
                    table[name].append(cell)
        except (csv.Error, ValueError) as error:  # UnicodeDecodeError among them
            raise ValueError(f"{path}: line {rows.line_num} cannot be read: {error}") from None
    return table


def _read_parquet(path: Path) -> Table:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError("Parquet needs pyarrow; get it with: pip install pyarrow, or give a .csv") from None
    try:
        with parquet.ParquetFile(path) as file:
            known = [name for name in ("path", "label", "group", "id") if name in file.schema_arrow.names]
            read = file.read(columns=known)
    except ArrowException as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    return {
        name: ["" if cell is None else str(cell) for cell in read.column(name).to_pylist()]
        for name in read.column_names
    }
