"""Outputs of the released programs of the zero-shot methods, in float32."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parents[2] / "golden" / "zero_shot"


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Matrices here are so small that threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN.with_suffix(".npz")))


@pytest.fixture(scope="session")
def golden_accuracy() -> list[dict]:
    return json.loads(GOLDEN.with_suffix(".json").read_text())
