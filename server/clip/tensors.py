"""Tensors that cross the API: embeddings that users upload, classifiers and session states as safetensors."""

import io
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic_core import from_json
from safetensors.torch import load, save
from torch import Tensor
from torch.linalg import vector_norm

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.parsing import takes_too_long

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LONGEST_HEADER = 8 * 2**20
_LONGEST_PARSE = 0.15
"""Bytes and seconds for the header of a file, which may name ten thousand classes."""


class BadTensors(InvalidRequest):
    """Uploaded bytes that are not what they should be."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="invalid_tensors")


def read_embeddings(data: bytes, dimensions: int) -> Tensor:
    """A .npy array or a .safetensors file with one tensor, as float32 with rows of unit length.

    (n, dimensions), or (n, 2, dimensions) where the file has two views of each image.
    """
    if data[:6] == b"\x93NUMPY":
        rows = _read_npy(data)
    else:
        tensors, _ = unpack(data)
        if len(tensors) != 1:
            raise BadTensors(f"The .safetensors file must hold one tensor of embeddings, not {len(tensors)}.")
        rows = next(iter(tensors.values()))
    if rows.dtype not in _FLOATS or not (rows.ndim == 2 or (rows.ndim == 3 and rows.shape[1] == 2)):
        raise BadTensors(
            "Embeddings must be a two-dimensional array of floats, images times dimensions, or with two views of each "
            "image (images, 2, dimensions)."
        )
    return check_embeddings(rows.float().flatten(0, -2), dimensions).reshape(rows.shape)


def check_views(rows: Tensor, views: int) -> None:
    """BadTensors unless rows are (n, d), or for two views (n, 2, d) of which not all are the same twice."""
    if rows.ndim != views + 1:
        raise BadTensors(
            "The embeddings hold one view of each image; this method needs two, as (images, 2, dimensions)."
            if views == 2
            else "The embeddings hold two views of each image; this method takes one, as (images, dimensions)."
        )
    if views == 2 and torch.equal(rows[:, 0], rows[:, 1]):
        raise BadTensors("The second views are the first ones again; two different views of each image are needed.")


def _read_npy(data: bytes) -> Tensor:
    """The array of a .npy file whose header matches its size: numpy allocates whatever the header promises."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
            raise ValueError("not the array that the header describes")
        return torch.from_numpy(np.ascontiguousarray(np.load(io.BytesIO(data), allow_pickle=False)))
    except Exception:
        # Headers are parsed as Python, which may raise RecursionError, MemoryError, TokenError, ... beside ValueError.
        raise BadTensors("The .npy file cannot be read as an array of floats.") from None


def check_embeddings(rows: Tensor, dimensions: int) -> Tensor:
    """`rows` with unit length. BadTensors for no rows, other dimensions, NaN, infinity or zero rows."""
    if not len(rows):
        raise BadTensors("There are no embeddings: at least one image is needed.")
    if rows.shape[1] != dimensions:
        raise BadTensors(f"The embeddings have {rows.shape[1]} dimensions; this model's have {dimensions}.")
    directions, bad = unit_length(rows, dim=1)
    if bool(bad.any()):
        raise BadTensors(f"Embedding {int(bad.int().argmax())} holds NaN or infinity, or is zero throughout.")
    return directions


def unit_length(vectors: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The vectors along `dim` at unit length, and which of them have no direction: NaN, infinity, or zeros only.

    Their squares may be too small or too large for the dtype.
    """
    largest = vector_norm(vectors, torch.inf, dim, keepdim=True)
    directions = vectors / largest
    directions /= vector_norm(directions, dim=dim, keepdim=True)
    return directions, ~((largest > 0) & largest.isfinite()).squeeze(dim)


def pack(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """A safetensors file whose metadata holds `about` as JSON."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return save(contiguous, metadata={"covervlm": json.dumps(about)})


def unpack(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and `about` of a safetensors file; `about` is empty where the file was made elsewhere."""
    written = data[8 : 8 + int.from_bytes(data[:8], "little")]
    if len(written) > _LONGEST_HEADER or takes_too_long(written, _LONGEST_PARSE):
        raise BadTensors("The .safetensors file's header holds more than this server reads: few tensors are expected.")
    try:
        tensors = load(data)
        header = from_json(written)
        # json.loads would accept half surrogate pairs, deep nesting and infinity, which cannot be sent on.
        about = from_json(header.get("__metadata__", {}).get("covervlm", "{}"))
        json.dumps(about, allow_nan=False)
    except Exception:
        # Not all that the parsers raise on damaged bytes is documented.
        raise BadTensors("The data is neither a .npy nor a .safetensors file, or it is damaged.") from None
    if not isinstance(about, dict):
        raise BadTensors("The file's metadata is damaged.")
    return tensors, about
