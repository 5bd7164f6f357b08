"""Pictures as points of a plane, with what was found of them, in Parquet: for viewers of embeddings and pandas."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

NEEDS = ("numpy", "pyarrow")


def lacking() -> str | None:
    """A package that has to be installed before points can be written."""
    for package in NEEDS:
        try:
            importlib.import_module(package)
        except ImportError:
            return package
    return None


def write_points(
    out: Path | IO[bytes],
    columns: Mapping[str, Sequence[Any]],
    *,
    places: Sequence[Sequence[float]] | None = None,
    vectors: Any = None,
) -> None:
    """A row for each picture: the columns, `x` and `y`, and its `vector` if there are vectors, all float32.

    vectors: (n, d). places: (x, y) of each picture; else those in the plane in which the vectors vary most.
    """
    import numpy
    import pyarrow
    import pyarrow.parquet

    rows = None if vectors is None else numpy.asarray(vectors, "float32")
    plane = _plane(rows) if places is None else numpy.asarray(places, "float32")
    table = {
        **columns,
        "x": pyarrow.array(plane[:, 0], pyarrow.float32()),
        "y": pyarrow.array(plane[:, 1], pyarrow.float32()),
    }
    if rows is not None:
        table["vector"] = pyarrow.array(list(rows), pyarrow.list_(pyarrow.float32()))
    pyarrow.parquet.write_table(pyarrow.table(table), out)


def _plane(rows: Any) -> Any:
    """(n, 2) coordinates along the two principal directions of rows (n, d)."""
    import numpy

    centred = rows - rows.mean(axis=0)
    return centred @ numpy.linalg.eigh(centred.T @ centred)[1][:, :-3:-1]
