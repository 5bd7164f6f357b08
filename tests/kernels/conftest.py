"""Fixtures of the kernel tests: golden cases, and kernels on a CUDA device, or else in Triton's interpreter."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import interpreted
import references

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Any]:
    with interpreted.start() as pool:
        yield pool


@pytest.fixture(scope="session")
def affinity_on(interpreter: Any) -> Callable[..., torch.Tensor]:
    """`coverage_affinity` on the backend named first."""
    return references.runner(interpreter, "coverage_affinity")


@pytest.fixture(scope="session")
def greedy_on(interpreter: Any) -> Callable[..., torch.Tensor]:
    """`greedy_max_coverage` on the backend named first."""
    return references.runner(interpreter, "greedy_max_coverage")


@pytest.fixture(scope="session")
def launch_shared(interpreter: Any) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """`greedy_triton.launch` by programs that wait for one another."""
    return references.launcher(interpreter)


@pytest.fixture(scope="session")
def golden_cases() -> list[references.GoldenCase]:
    described = json.loads((GOLDEN / "mmtok_selection.json").read_text())
    return references.golden_cases(described, GOLDEN / "mmtok_selection.npz")
