"""Pictures as points of a plane, in a Parquet file for viewers of embeddings."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from covervlm.clients import Embeddings
from covervlm.server.cli.errors import USAGE, CommandError, file_errors


def check_points_file(path: Path) -> None:
    """Raises CommandError for a file that could not be written in the end."""
    if path.suffix.lower() != ".parquet":
        raise CommandError(f"{path}: the name of a file of points ends in .parquet", USAGE)
    if not path.parent.is_dir():
        raise CommandError(f"{path}: there is no folder {path.parent}", USAGE)
    for package in ("numpy", "pyarrow"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise CommandError(f"A file of points needs {package}; get it with: pip install {package}", USAGE) from None


def write_points(
    path: Path,
    images: Sequence[Path],
    vectors: Sequence[Embeddings],
    columns: Mapping[str, Sequence[Any]],
    places: Sequence[tuple[float, float]] | None = None,
) -> None:
    """A row for each image: `filepath`, the columns, `x` and `y`, and its `vector`, a list of float32.

    vectors: of the images, in parts. places: (x, y) of each; else those in the plane of largest variance.
    """
    import numpy
    import pyarrow
    import pyarrow.parquet

    rows = numpy.concatenate([numpy.asarray(part) for part in vectors])
    plane = numpy.asarray(places, "float32") if places is not None else _plane(rows)
    table = {
        "filepath": [str(image) for image in images],
        **columns,
        "x": pyarrow.array(plane[:, 0], pyarrow.float32()),
        "y": pyarrow.array(plane[:, 1], pyarrow.float32()),
        "vector": pyarrow.array(list(rows), pyarrow.list_(pyarrow.float32())),
    }
    with file_errors(path):
        pyarrow.parquet.write_table(pyarrow.table(table), path)


def _plane(rows: Any) -> Any:
    """(n, 2) coordinates along the two principal directions of rows (n, d)."""
    import numpy

    centred = rows - rows.mean(axis=0)
    return centred @ numpy.linalg.eigh(centred.T @ centred)[1][:, :-3:-1]
