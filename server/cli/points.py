"""Pictures as points of a plane, in a Parquet file for viewers of embeddings."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from covervlm.clients import Embeddings
from covervlm.server.cli.arguments import check_folder
from covervlm.server.cli.errors import USAGE, CommandError, file_errors
from covervlm.server.clip.points import lacking, write_points


def add_points(parser: argparse.ArgumentParser, columns: str) -> None:
    what = f"also write {columns}, x, y and vector of every picture to this .parquet file"
    parser.add_argument("--points", type=Path, metavar="FILE", help=what)


def check_points_file(path: Path) -> None:
    """Raises CommandError for a file that could not be written in the end."""
    if path.suffix.lower() != ".parquet":
        raise CommandError(f"{path}: the name of a file of points ends in .parquet", USAGE)
    check_folder(path)
    if package := lacking():
        raise CommandError(f"A file of points needs {package}; get it with: pip install {package}", USAGE)


def write_points_file(
    path: Path,
    images: Sequence[Path],
    vectors: Sequence[Embeddings],
    columns: Mapping[str, Sequence[Any]],
    places: Sequence[tuple[float, float]] | None = None,
) -> None:
    """A row for each image: `filepath`, the columns, `x` and `y`, and its `vector`.

    vectors: of the images, in parts. places: (x, y) of each; else those in the plane of largest variance.
    """
    import numpy

    rows = numpy.concatenate([numpy.asarray(part) for part in vectors])
    with file_errors(path):
        write_points(path, {"filepath": [str(image) for image in images], **columns}, places=places, vectors=rows)
