"""Texts and images as vectors in one space, and files of such vectors."""

import base64
import io
import os
import struct
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from covervlm.clients.calls import Call, given
from covervlm.clients.images import Images, image_parts

if TYPE_CHECKING:
    import numpy

    Matrix: TypeAlias = "Embeddings | numpy.ndarray[Any, Any] | bytes | str | os.PathLike[str]"
else:
    Matrix: TypeAlias = Any


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors, one per input; `numpy.asarray(embeddings)` is (n, d) float32.

    vectors: arrays of float32; `list(vector)` gives plain numbers. prompt_tokens: of the texts; an image counts as 0.
    """

    model: str
    vectors: tuple["array[float]", ...]
    prompt_tokens: int

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, index: int) -> "array[float]":
        return self.vectors[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> "numpy.ndarray[Any, Any]":
        import numpy

        return numpy.array([numpy.frombuffer(vector, "float32") for vector in self.vectors], dtype)

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        vectors = [_floats(base64.b64decode(entry["embedding"])) for entry in body["data"]]
        return cls(body["model"], tuple(vectors), body["usage"]["prompt_tokens"])


def embed_texts(
    texts: str | Sequence[str], *, model: str | None = None, timeout: float | None = None
) -> Call[Embeddings]:
    """The vector of every text. The dot product of two vectors is their cosine similarity, also with an image's."""
    return _embed([texts] if isinstance(texts, str) else list(texts), model, timeout)


def embed_images(images: Images, *, model: str | None = None, timeout: float | None = None) -> Call[Embeddings]:
    """The vector of every image: a path, an http(s) or data URL, bytes, a PIL image or a numpy array, or a list."""
    return _embed(image_parts(images), model, timeout)


def _embed(inputs: list[Any], model: str | None, timeout: float | None) -> Call[Embeddings]:
    body = {"input": inputs, "encoding_format": "base64", **given(model=model)}
    return Call("POST", "/v1/embeddings", Embeddings.read, body, timeout=timeout)


def matrix_file(matrix: Matrix) -> bytes:
    """An (n, d) array, or what numpy makes one of, as a .npy file; a file or its path goes as it is."""
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
    """The same in NumPy's file format, version 1.0, written without NumPy."""
    shape = (len(embeddings), len(embeddings[0]) if len(embeddings) else 0)
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    # Magic, version, length and header fill a multiple of 64 bytes; the header ends in a line feed.
    header = header.ljust((len(header) + 10) // 64 * 64 + 64 - 10 - 1) + "\n"
    data = b"".join(struct.pack(f"<{len(vector)}f", *vector) for vector in embeddings.vectors)
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode("latin1") + data


def _floats(data: bytes) -> "array[float]":
    """Numbers from little-endian float32 bytes."""
    floats = array("f", data)
    if sys.byteorder == "big":
        floats.byteswap()
    return floats
