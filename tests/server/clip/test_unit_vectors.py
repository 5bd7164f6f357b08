"""Uploaded vectors have their direction whatever their length, and are refused only where they have none."""

import io

import numpy as np
import pytest
import torch
from safetensors.torch import save

from covervlm.server.clip.tensors import BadTensors, read_embeddings

ROWS = np.random.default_rng(0).standard_normal((5, 8))
DIRECTIONS = torch.from_numpy(ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)).float()
LENGTHS = [1e-37, 1e-30, 1e-13, 1.0, 1e10, 1e30, 1e37]


@pytest.mark.parametrize("length", LENGTHS)
def test_embeddings_of_any_length_have_their_direction(length):
    rows, file = (ROWS * length).astype(np.float32), io.BytesIO()
    np.save(file, rows)
    for data in (file.getvalue(), save({"rows": torch.from_numpy(rows)})):
        torch.testing.assert_close(read_embeddings(data, 8), DIRECTIONS, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf, -torch.inf])
def test_rows_without_a_direction_are_named(value):
    rows = DIRECTIONS.clone()
    rows[3] = value if value == 0 else rows[3]
    rows[3, 2] = value
    with pytest.raises(BadTensors, match="Embedding 3 holds NaN or infinity, or is zero"):
        read_embeddings(save({"rows": rows}), 8)
