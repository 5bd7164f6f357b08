"""MMTok against the outputs of the paper's released program."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from covervlm.pruners import PruneInput, get_pruner

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "mmtok_selection.json").read_text())
ARRAYS = np.load(GOLDEN / "mmtok_selection.npz")


def load(case):
    prefix = f"{case['case']}."
    arrays = {name.removeprefix(prefix): ARRAYS[name] for name in ARRAYS.files if name.startswith(prefix)}
    allowed = torch.ones(case["n"], dtype=torch.bool)
    allowed[torch.from_numpy(arrays["exclude"])] = False
    image = PruneInput(
        tokens=torch.from_numpy(arrays["x"]),
        features=torch.from_numpy(arrays["c"]),
        text=torch.from_numpy(arrays["z"]),
        allowed=allowed,
    )
    pruner = get_pruner("mmtok", **{name: case[name] for name in ("alpha", "tau_text", "tau_vision")})
    return arrays, image, pruner


def affinity64(x, c, z, case):
    """The MMTok matrix in float64 numpy."""

    def unit(a):
        return a.astype(np.float64) / np.maximum(np.linalg.norm(a.astype(np.float64), axis=1, keepdims=True), 1e-8)

    def softmax(a):
        a = np.exp(a - a.max(axis=1, keepdims=True))
        return a / a.sum(axis=1, keepdims=True)

    text = softmax(unit(z) @ unit(x).T / case["tau_text"]) / len(z)
    vision = softmax(unit(c) @ unit(c).T / case["tau_vision"]) / len(x)
    return np.concatenate([text, case["alpha"] * vision])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case['case']}")
def test_mmtok_keeps_exactly_the_published_set(case):
    arrays, image, pruner = load(case)
    (selection,) = pruner.choose([image], case["k"])
    assert selection.indices.dtype == torch.int64
    assert selection.indices.tolist() == arrays["indices"].tolist()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case['case']}")
def test_mmtok_reports_the_share_of_the_objective_that_it_reaches(case):
    arrays, image, pruner = load(case)
    (selection,) = pruner.choose([image], case["k"])
    affinity = affinity64(arrays["x"], arrays["c"], arrays["z"], case)
    reached = affinity[:, selection.indices.numpy()].max(axis=1).sum()
    everything = affinity[:, image.allowed.numpy()].max(axis=1).sum()
    assert reached == pytest.approx(case["objective"], rel=1e-6)
    assert selection.coverage == pytest.approx(reached / everything, rel=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case['case']}")
def test_every_budget_follows_the_published_pick_order(case):
    """A smaller budget is a prefix of the pick order; near-ties may swap, but never lose coverage."""
    arrays, image, pruner = load(case)
    affinity = affinity64(arrays["x"], arrays["c"], arrays["z"], case)
    budgets = sorted({1, 2, case["k"] // 3 or 1, case["k"] - 1})
    for budget in budgets:
        (kept,) = pruner.select([image], budget)
        published = affinity[:, arrays["greedy_order"][:budget]].max(axis=1).sum()
        assert affinity[:, kept.numpy()].max(axis=1).sum() == pytest.approx(published, rel=1e-6)
