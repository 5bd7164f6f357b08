"""Reference outputs of the methods on features, in float64, with parameters and scalars of each case."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parents[3] / "golden" / "features"


@pytest.fixture(scope="session")
def golden() -> Callable[..., SimpleNamespace]:
    """golden("sea", 0): its tensors and scalars by name; with dtype=torch.float32, the floating ones in that."""

    def load(name: str, case: int, dtype: torch.dtype = torch.float64) -> SimpleNamespace:
        scalars = json.loads((GOLDEN / f"{name}.json").read_text())["cases"][case]
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            own = {key.partition(".")[2]: arrays[key] for key in arrays if key.startswith(f"{case}.")}
        tensors = {key: torch.from_numpy(value) for key, value in own.items()}
        return SimpleNamespace(**scalars | {k: t.to(dtype) if t.is_floating_point() else t for k, t in tensors.items()})

    return load
