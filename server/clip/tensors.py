"""Tensors that cross the API: embeddings that users upload, classifiers and session states as safetensors."""

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.engines.base import InvalidRequest

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class BadTensors(InvalidRequest):
    """Uploaded bytes that are not what they should be."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="invalid_tensors")


def read_embeddings(data: bytes, dimensions: int) -> Tensor:
    """A .npy array or a .safetensors file with one tensor, as (n, dimensions) float32 with rows of unit length."""
    if data[:6] == b"\x93NUMPY":
        try:
            array = np.load(io.BytesIO(data), allow_pickle=False)
            rows = torch.from_numpy(np.ascontiguousarray(array))
        except (ValueError, TypeError, EOFError, OSError):
            raise BadTensors("The .npy file cannot be read as an array of floats.") from None
    else:
        tensors, _ = unpack(data)
        if len(tensors) != 1:
            raise BadTensors(f"The .safetensors file must hold one tensor of embeddings, not {len(tensors)}.")
        rows = next(iter(tensors.values()))
    if rows.ndim != 2 or rows.dtype not in _FLOATS:
        raise BadTensors("Embeddings must be a two-dimensional array of floats: images times dimensions.")
    return check_embeddings(rows.float(), dimensions)


def check_embeddings(rows: Tensor, dimensions: int) -> Tensor:
    """`rows` with unit length. BadTensors for no rows, other dimensions, NaN, infinity or zero rows."""
    if not len(rows):
        raise BadTensors("There are no embeddings: at least one image is needed.")
    if rows.shape[1] != dimensions:
        raise BadTensors(f"The embeddings have {rows.shape[1]} dimensions; this model's have {dimensions}.")
    lengths = rows.norm(dim=1)
    wrong = (~lengths.isfinite() | (lengths == 0)).nonzero().flatten()
    if len(wrong):
        raise BadTensors(f"Embedding {int(wrong[0])} holds NaN or infinity, or is zero throughout.")
    return normalize(rows, dim=1)


def pack(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """A safetensors file whose metadata holds `about` as JSON."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return save(contiguous, metadata={"covervlm": json.dumps(about)})


def unpack(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and `about` of a safetensors file; `about` is empty where the file was made elsewhere."""
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header.get("__metadata__", {}).get("covervlm", "{}"))
    except (SafetensorError, ValueError, TypeError, AttributeError, OverflowError, KeyError):
        raise BadTensors("The data is neither a .npy nor a .safetensors file, or it is damaged.") from None
    if not isinstance(about, dict):
        raise BadTensors("The file's metadata is damaged.")
    return tensors, about
