"""A projection as a file: a matrix from one model's space to another."""

from torch import Tensor

from covervlm.server.clip.methods.contracts import Projection
from covervlm.server.clip.tensors import BadTensors, pack, unpack


def write_projection(projection: Projection) -> bytes:
    """A safetensors file of the matrix alone; all else is on the projection's card."""
    return pack({"matrix": projection.matrix.cpu()}, {})


def read_projection(data: bytes) -> Projection:
    """The projection in a file that `write_projection` made. Raises BadTensors for anything else."""
    tensors, _ = unpack(data)
    matrix: Tensor | None = tensors.get("matrix")
    if matrix is None or matrix.ndim != 2 or not matrix.numel() or not bool(matrix.isfinite().all()):
        raise BadTensors("This file is not a projection made by this server.")
    return Projection(matrix.float())
