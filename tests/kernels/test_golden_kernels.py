"""The golden selections, by every pair of backends that runs on one device."""

import pytest
import references
import torch


@pytest.mark.parametrize("case", range(9))
@pytest.mark.parametrize(("affinity", "greedy"), [("torch", "torch"), ("cpu", "numba"), ("triton", "triton")])
def test_golden_sets_and_objectives_are_reproduced(affinity, greedy, case, affinity_on, greedy_on, golden_cases):
    golden = golden_cases[case]
    matrix = affinity_on(affinity, golden.text, golden.tokens, golden.features, **golden.affinity_settings)
    picks = greedy_on(greedy, matrix, golden.k, allowed=golden.allowed).tolist()
    assert sorted(picks) == golden.indices
    assert references.objective(matrix, picks) == pytest.approx(golden.objective, abs=1e-6)
    if golden.margin > 1e-5:
        assert picks == golden.greedy_order


def test_all_golden_cases_are_checked(golden_cases):
    assert len(golden_cases) == 9


@pytest.mark.parametrize("backend", ["torch", "numba", "triton"])
def test_golden_cases_in_one_ragged_batch_give_the_golden_sets(backend, affinity_on, greedy_on, golden_cases):
    cases = [golden_cases[i] for i in (3, 6, 8)]
    affinity_backend = {"torch": "torch", "numba": "cpu", "triton": "triton"}[backend]
    matrices = [affinity_on(affinity_backend, c.text, c.tokens, c.features, **c.affinity_settings) for c in cases]
    rows, n = (max(m.shape[axis] for m in matrices) for axis in (0, 1))
    batch, allowed = torch.zeros(len(cases), rows, n), torch.zeros(len(cases), n, dtype=torch.bool)
    for item, (case, matrix) in enumerate(zip(cases, matrices, strict=True)):
        batch[item, : matrix.shape[0], : matrix.shape[1]] = matrix
        allowed[item, : len(case.allowed)] = case.allowed
    picks = greedy_on(
        backend, batch, [c.k for c in cases], allowed=allowed, columns=torch.tensor([m.shape[1] for m in matrices])
    )
    assert picks.shape == (3, max(c.k for c in cases))
    for row, case in zip(picks.tolist(), cases, strict=True):
        assert sorted(row[: case.k]) == case.indices
        assert set(row[case.k :]) <= {-1}
