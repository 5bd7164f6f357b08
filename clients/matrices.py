"""Embeddings of any kind (array, file, what this client answered) to the file in bytes that goes over HTTP."""

import io
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from covervlm.clients.clip_answers import Embeddings

if TYPE_CHECKING:
    import numpy

    Matrix: TypeAlias = "Embeddings | numpy.ndarray[Any, Any] | bytes | str | os.PathLike[str]"
else:
    Matrix: TypeAlias = Any


def matrix_file(matrix: Matrix) -> bytes:
    """An (n, d) array, or what numpy takes for one, as a .npy file; files, and the paths of files, go as they are."""
    if isinstance(matrix, bytes):
        return matrix
    if isinstance(matrix, str | os.PathLike):
        return Path(matrix).read_bytes()
    if isinstance(matrix, Embeddings):
        return _npy(matrix)
    import numpy

    file = io.BytesIO()
    numpy.save(file, numpy.asarray(matrix), allow_pickle=False)
    return file.getvalue()


def _npy(embeddings: Embeddings) -> bytes:
    """NumPy's file format, version 1.0, without NumPy."""
    shape = (len(embeddings), len(embeddings[0]) if len(embeddings) else 0)
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    # Magic, version, length and header fill a multiple of 64 bytes; the header ends in a line feed.
    header = header.ljust((len(header) + 10) // 64 * 64 + 64 - 10 - 1) + "\n"
    data = b"".join(struct.pack(f"<{len(vector)}f", *vector) for vector in embeddings.vectors)
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode("latin1") + data
