"""A projection as a file: a matrix from one model's space to another."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from covervlm.server.clip.methods.contracts import Projection
from covervlm.server.clip.tensors import BadTensors, pack, unpack

_SHORTEST, _LONGEST = 1e-15, 1e15
"""Of a matrix, so that what it makes of unit vectors has a length in float32."""


def write_projection(projection: Projection, card: Mapping[str, Any]) -> bytes:
    """A safetensors file of the matrix, with all of the card but the report in its metadata."""
    return pack({"matrix": projection.matrix.cpu()}, {name: value for name, value in card.items() if name != "report"})


def read_projection(data: bytes) -> tuple[Projection, dict[str, Any]]:
    """The projection in a file that `write_projection` made, and its card. Raises BadTensors for anything else."""
    tensors, card = unpack(data)
    matrix: Tensor | None = tensors.get("matrix")
    if matrix is None or matrix.ndim != 2 or not _SHORTEST < float(matrix.double().norm()) < _LONGEST:
        raise BadTensors("This file is not a projection made by this server.")
    return Projection(matrix.float()), card
