"""`greedy_max_coverage` against a float64 greedy, its edge rules, and what it refuses."""

import pytest
import references
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from covervlm.kernels import coverage_affinity, greedy_max_coverage

BACKENDS = ["torch", "numba", "triton"]


@st.composite
def problems(draw, most_columns):
    """A matrix, a mask and k: random values, values on a coarse grid, copies of few columns, or one constant."""
    rows, n = draw(st.integers(1, 24)), draw(st.integers(1, most_columns))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["random", "negative", "grid", "copies", "constant", "zero"]))
    if kind == "grid":
        matrix = torch.randint(0, 4, (rows, n), generator=generator) / 8
    elif kind == "copies":
        few = torch.rand(rows, draw(st.integers(1, 4)), generator=generator)
        matrix = few[:, torch.randint(0, few.shape[1], (n,), generator=generator)]
    elif kind in ("constant", "zero"):
        matrix = torch.full((rows, n), 0.3 if kind == "constant" else 0.0)
    else:
        matrix = torch.rand(rows, n, generator=generator) - (0.5 if kind == "negative" else 0.0)
    share = draw(st.sampled_from([None, 0.0, 0.3, 0.8]))
    allowed = None if share is None else torch.rand(n, generator=generator) < share
    return matrix, draw(st.integers(0, n + 2)), allowed, kind == "grid"


def assert_greedy(picks, matrix, k, allowed, exact):
    expected, near_tie = references.float64_greedy(matrix, k, allowed)
    if exact or not near_tie:
        assert picks == expected
    else:
        assert len(set(picks)) == len(expected)
        assert references.objective(matrix, picks) == pytest.approx(references.objective(matrix, expected), rel=1e-6)


@pytest.mark.parametrize("backend", ["torch", "numba"])
@settings(max_examples=150, deadline=None)
@given(problem=problems(most_columns=40))
def test_picks_equal_those_of_a_float64_greedy(backend, problem):
    matrix, k, allowed, exact = problem
    picks = greedy_max_coverage(matrix, k, allowed=allowed, backend=backend).tolist()
    assert_greedy(picks, matrix, k, allowed, exact)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weighted_picks_equal_those_of_a_float64_greedy(backend, greedy_on):
    generator = torch.Generator().manual_seed(5)
    batch, weights = torch.rand(3, 14, 21, generator=generator), torch.rand(3, 21, generator=generator)
    weights[1, :19] = 0  # columns that count for nothing follow from the lowest index up
    allowed = torch.rand(3, 21, generator=generator) < 0.8
    picks = greedy_on(backend, batch, [9, 7, 1], allowed=allowed, weights=weights).tolist()
    for item, k in enumerate([9, 7, 1]):
        expected, near_tie = references.float64_greedy(batch[item], k, allowed[item], weights[item])
        assert picks[item][:k] == expected
        assert item == 1 or not near_tie


@pytest.mark.parametrize("weights", [torch.ones(5), torch.ones(4, dtype=torch.int64), [1.0] * 4])
def test_weights_of_another_shape_or_kind_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be"):
        greedy_max_coverage(torch.rand(3, 4), 2, weights=weights)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ragged=st.lists(problems(most_columns=14), min_size=1, max_size=4))
def test_ragged_batches_equal_a_float64_greedy_per_item(backend, ragged, greedy_on):
    rows, n = (max(matrix.shape[axis] for matrix, *_ in ragged) for axis in (0, 1))
    batch = torch.zeros(len(ragged), rows, n)
    masks = torch.ones(len(ragged), n, dtype=torch.bool)
    for item, (matrix, _, allowed, _) in enumerate(ragged):
        batch[item, : matrix.shape[0], : matrix.shape[1]] = matrix
        if allowed is not None:
            masks[item, : matrix.shape[1]] = allowed
    counts, columns = [k for _, k, _, _ in ragged], [matrix.shape[1] for matrix, *_ in ragged]
    picks = greedy_on(backend, batch, counts, allowed=masks, columns=columns)
    assert picks.dtype == torch.int64
    assert picks.shape == (len(ragged), min(max(counts), n))
    for row, (matrix, k, allowed, exact) in zip(picks.tolist(), ragged, strict=True):
        kept = [index for index in row if index >= 0]
        assert row == kept + [-1] * (len(row) - len(kept))
        assert_greedy(kept, matrix, k, allowed, exact)


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_rows_and_columns_agree_with_the_float64_greedy(backend, greedy_on):
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(40, 24, generator=generator)[torch.randint(0, 40, (300,), generator=generator)]
    features += 0.4 * torch.randn(300, 24, generator=generator)
    matrix = coverage_affinity(features[::50], features, features)
    expected, near_tie = references.float64_greedy(matrix, 25)
    assert not near_tie
    assert greedy_on(backend, matrix, 25).tolist() == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_columns_are_kept_where_n_is_at_most_k(backend, greedy_on):
    matrix = torch.rand(6, 5, generator=torch.Generator().manual_seed(0))
    allowed = torch.tensor([True, False, True, False, False])
    for k in (5, 9):
        assert sorted(greedy_on(backend, matrix, k, allowed=allowed).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_allowed_columns_are_kept_where_they_are_fewer_than_k(backend, greedy_on):
    allowed = torch.tensor([True, False, True, False, False])
    picks = greedy_on(backend, torch.rand(6, 5), 3, allowed=allowed).tolist()
    assert sorted(picks) == [0, 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mask_that_allows_nothing_is_ignored(backend, greedy_on):
    matrix = torch.rand(6, 5, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(5, dtype=torch.bool)
    assert greedy_on(backend, matrix, 2, allowed=nothing).tolist() == references.float64_greedy(matrix, 2)[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_lowest_allowed_index(backend, greedy_on):
    allowed = torch.tensor([False, True, True, False, True, True])
    assert greedy_on(backend, torch.zeros(3, 6), 3, allowed=allowed).tolist() == [1, 2, 4]
    assert greedy_on(backend, torch.full((3, 6), 0.1), 3, allowed=allowed).tolist() == [1, 2, 4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_zeros_change_nothing(backend, greedy_on):
    matrix = torch.rand(7, 30, generator=torch.Generator().manual_seed(1))
    padded = torch.cat([matrix, torch.zeros(9, 30)])
    assert greedy_on(backend, padded, 7).tolist() == greedy_on(backend, matrix, 7).tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_dtype_is_accepted_and_computed_in_float32(backend, dtype, greedy_on):
    matrix = torch.rand(9, 20, generator=torch.Generator().manual_seed(2)).to(dtype)
    assert greedy_on(backend, matrix, 6).tolist() == references.float64_greedy(matrix.float(), 6)[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_memory_layouts_give_the_same_picks(backend, greedy_on):
    matrix = torch.rand(9, 20, generator=torch.Generator().manual_seed(3))
    by_columns = matrix.mT.contiguous().mT
    assert greedy_on(backend, by_columns, 6).tolist() == greedy_on(backend, matrix, 6).tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_k_of_zero_and_an_empty_batch_pick_nothing(backend, greedy_on):
    assert greedy_on(backend, torch.rand(3, 4), 0).shape == (0,)
    assert greedy_on(backend, torch.rand(2, 3, 4), [0, 0]).shape == (2, 0)
    assert greedy_on(backend, torch.rand(0, 3, 4), 2).shape == (0, 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(backend, bad, greedy_on):
    matrix = torch.rand(2, 5, 6)
    matrix[1, 4, 2] = bad
    with pytest.raises(ValueError, match="affinity must be finite"):
        greedy_on(backend, matrix, 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unchecked_values_that_are_not_finite_cannot_hang_it(backend, greedy_on):
    matrix = torch.full((5, 6), float("nan"))
    assert greedy_on(backend, matrix, 3, check_finite=False).shape == (3,)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("affinity", lambda: greedy_max_coverage([[1.0]], 1)),
        ("affinity", lambda: greedy_max_coverage(torch.ones(3, 3, dtype=torch.int64), 1)),
        ("affinity", lambda: greedy_max_coverage(torch.rand(3), 1)),
        ("affinity", lambda: greedy_max_coverage(torch.rand(1, 1, 3, 3), 1)),
        ("affinity", lambda: greedy_max_coverage(torch.rand(0, 3), 1)),
        ("affinity", lambda: greedy_max_coverage(torch.rand(3, 0), 1)),
        ("k", lambda: greedy_max_coverage(torch.rand(3, 3), -1)),
        ("k", lambda: greedy_max_coverage(torch.rand(3, 3), 1.5)),
        ("k", lambda: greedy_max_coverage(torch.rand(3, 3), True)),
        ("k", lambda: greedy_max_coverage(torch.rand(3, 3), None)),
        ("k", lambda: greedy_max_coverage(torch.rand(3, 3), "two")),
        ("k", lambda: greedy_max_coverage(torch.rand(2, 3, 3), [1, 2, 3])),
        ("k", lambda: greedy_max_coverage(torch.rand(2, 3, 3), [1, -2])),
        ("k", lambda: greedy_max_coverage(torch.rand(2, 3, 3), torch.tensor([1.0, 2.0]))),
        ("allowed", lambda: greedy_max_coverage(torch.rand(3, 3), 1, allowed=torch.ones(4, dtype=torch.bool))),
        ("allowed", lambda: greedy_max_coverage(torch.rand(3, 3), 1, allowed=torch.ones(3))),
        ("allowed", lambda: greedy_max_coverage(torch.rand(2, 3, 3), 1, allowed=torch.ones(3, dtype=torch.bool))),
        ("columns", lambda: greedy_max_coverage(torch.rand(3, 3), 1, columns=[3])),
        ("columns", lambda: greedy_max_coverage(torch.rand(2, 3, 3), 1, columns=[3, 4])),
        ("columns", lambda: greedy_max_coverage(torch.rand(2, 3, 3), 1, columns=[0, 3])),
        ("backend", lambda: greedy_max_coverage(torch.rand(3, 3), 1, backend="cuda")),
        ("backend", lambda: greedy_max_coverage(torch.rand(3, 3), 1, backend="triton")),
    ],
)
def test_bad_input_is_refused_with_the_name_of_the_argument(argument, call, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=rf"^{argument}\b"):
        call()


@pytest.mark.parametrize(("n", "items", "capacity"), [(40, 1, 8), (70, 2, 12)])
def test_programs_that_share_an_item_agree_on_every_pick(n, items, capacity, launch_shared):
    affinity = torch.rand(items, 30, n, generator=torch.Generator().manual_seed(n))
    k = 12
    counts, allowed = torch.full((items,), k), torch.ones(items, n, dtype=torch.bool)
    # Tiles of the full size hold all of so small a matrix, and one program would do.
    picks, evaluations = launch_shared(affinity, counts, allowed, k, capacity)
    assert evaluations.shape[2] > 1
    for item in range(items):
        assert picks[item].tolist() == references.float64_greedy(affinity[item], k)[0]
