"""Labels as the text of a CSV file, in place of lists."""

import csv
import io

MOST_ROWS = 50_000
_LONGEST = 2**23
"""Characters, which may be as many cells."""

COLUMNS = {"label": "labels", "group": "groups", "id": "ids"}
"""Of the file, and the fields of the body that they stand for; other columns are passed over."""


def read_labels(text: str) -> dict[str, list[str]]:
    """`labels`, and `groups` and `ids` where the first line names them. ValueError for a text that is no such table."""
    if len(text) > _LONGEST:
        raise ValueError(f"'labels_csv' may have {_LONGEST} characters at most")
    rows = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    cells: list[list[str]] = []
    try:
        names = next(rows, [])
        if names.count("label") != 1:
            raise ValueError("the first line must name the columns, 'label' among them")
        for row in filter(None, rows):
            if len(row) != len(names):
                raise ValueError(f"{len(row)} cells, but the first line names {len(names)} columns")
            if len(cells) == MOST_ROWS:
                raise ValueError(f"there may be {MOST_ROWS} examples at most")
            cells.append(row)
    except (csv.Error, ValueError) as error:
        raise ValueError(f"'labels_csv' cannot be read as CSV, line {max(rows.line_num, 1)}: {error}") from None
    places = {field: names.index(name) for name, field in COLUMNS.items() if name in names}
    return {field: [row[place] for row in cells] for field, place in places.items()}
