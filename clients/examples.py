"""What trained things are learned from, as the server takes it: labelled images, or embeddings and uploads of them."""

import os
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from covervlm.clients.calls import given, listed
from covervlm.clients.embeddings import Matrix, matrix_file
from covervlm.clients.images import Images, image_parts
from covervlm.clients.records import Record
from covervlm.clients.tables import Labels, csv_text, labels_in


@dataclass(frozen=True)
class Upload(Record):
    """Embeddings that the server keeps in memory for up to an hour; `uploads` takes them.

    views: of each image.
    """

    id: str
    images: int
    dimensions: int
    views: int = 1


def labelled(
    labels: Labels | None,
    images: Images,
    *,
    groups: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Images with their labels as `examples`; without images, the columns that go with embeddings.

    labels may be the path of a .csv or .parquet file with the columns label and, if any, group and id. Raises
    ValueError where there are not as many labels, groups and ids as images.
    """
    parts = image_parts(images)
    if isinstance(labels, os.PathLike):
        table = labels_in(labels)
        if not parts:
            return {"labels_csv": csv_text(table), **given(groups=listed(groups), ids=listed(ids))}
        labels, groups, ids = table["label"], groups or table.get("group"), ids or table.get("id")
    if labels is None:
        return {"images": parts}
    if not parts:
        return {"labels": list(labels), **given(groups=listed(groups), ids=listed(ids))}
    if any(column is not None and len(column) != len(parts) for column in (labels, groups, ids)):
        raise ValueError(f"there are {len(parts)} images: give as many labels, groups and ids")
    columns = {"image": parts, "label": labels, **given(group=groups, id=ids)}
    return {"examples": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}


def vectors(embeddings: Matrix | None, uploads: Sequence[str | Upload]) -> dict[str, Any]:
    names = [upload if isinstance(upload, str) else upload.id for upload in uploads]
    file = None if embeddings is None else b64encode(matrix_file(embeddings)).decode()
    return {"uploads": names, **given(embeddings=file)}
