"""`coverage_affinity` against the formula in float64, and what it refuses."""

import pytest
import references
import torch

from covervlm.kernels import coverage_affinity

BACKENDS = ["torch", "cpu", "triton"]
SETTINGS = {"tau_text": 0.02, "tau_vision": 0.2, "alpha": 0.5}


def sample(m: int, n: int, seed: int = 0, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, d, generator=generator).to(dtype) for rows, d in ((m, 24), (n, 24), (n, 40)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 17), (7, 65), (20, 130), (0, 33)])
def test_every_backend_computes_the_formula(backend, m, n, affinity_on):
    inputs = sample(m, n)
    expected = references.float64_affinity(*inputs, **SETTINGS)
    torch.testing.assert_close(affinity_on(backend, *inputs, **SETTINGS).double(), expected, atol=1e-6, rtol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("settings", [{"tau_text": 0.5, "tau_vision": 0.005, "alpha": 2.0}, {**SETTINGS, "alpha": 0.0}])
def test_other_temperatures_and_weights_follow_the_formula(backend, settings, affinity_on):
    inputs = sample(4, 50)
    expected = references.float64_affinity(*inputs, **settings)
    torch.testing.assert_close(affinity_on(backend, *inputs, **settings).double(), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_sum_to_their_weights(backend, affinity_on):
    sums = affinity_on(backend, *sample(5, 70), **SETTINGS).sum(dim=1)
    torch.testing.assert_close(sums[:5], torch.full((5,), 1 / 5))
    torch.testing.assert_close(sums[5:], torch.full((70,), 0.5 / 70))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_ragged_batch_equals_its_items_and_is_zero_beyond_them(backend, affinity_on):
    sizes = [(3, 20), (0, 37), (6, 5)]
    batch = [torch.full((3, rows, d), 7.0) for rows, d in ((6, 24), (37, 24), (37, 40))]
    for item, (m, n) in enumerate(sizes):
        for padded, part in zip(batch, sample(m, n, seed=item), strict=True):
            padded[item, : len(part)] = part
    got = affinity_on(
        backend, *batch, **SETTINGS, text_lengths=[m for m, _ in sizes], token_lengths=[n for _, n in sizes]
    )
    assert got.shape == (3, 43, 37)
    for item, (m, n) in enumerate(sizes):
        expected = torch.zeros(43, 37, dtype=torch.float64)
        alone = references.float64_affinity(*sample(m, n, seed=item), **SETTINGS)
        expected[:m, :n], expected[6 : 6 + n, :n] = alone[:m], alone[m:]
        torch.testing.assert_close(got[item].double(), expected, atol=1e-6, rtol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_computed_in_float32(backend, dtype, affinity_on):
    inputs = sample(4, 40, dtype=dtype)
    expected = references.float64_affinity(*inputs, **SETTINGS)
    got = affinity_on(backend, *inputs, **SETTINGS)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_of_zeros_attends_to_all_tokens_alike(backend, affinity_on):
    text, tokens, features = sample(2, 30)
    features[4] = 0
    got = affinity_on(backend, text, tokens, features, **SETTINGS)
    torch.testing.assert_close(got[2 + 4], torch.full((30,), 0.5 / 30 / 30))


@pytest.mark.parametrize("backend", BACKENDS)
def test_text_rows_alone_and_vision_rows_alone_are_parts_of_the_whole(backend, affinity_on):
    text, tokens, features = sample(3, 25)
    whole = affinity_on(backend, text, tokens, features, **SETTINGS)
    torch.testing.assert_close(affinity_on(backend, text, tokens, None, **SETTINGS), whole[:3])
    torch.testing.assert_close(affinity_on(backend, None, tokens, features, **SETTINGS), whole[3:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["text", "tokens", "features"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(backend, name, bad, affinity_on):
    parts = dict(zip(("text", "tokens", "features"), sample(3, 12), strict=True))
    parts[name][1, 2] = bad
    with pytest.raises(ValueError, match=name):
        affinity_on(backend, **parts, **SETTINGS)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"tokens": torch.zeros(0, 24)}, "tokens"),
        ({"text": torch.zeros(3, 23)}, "text"),
        ({"features": torch.zeros(11, 40)}, "features"),
        ({"features": torch.zeros(12)}, "features"),
        ({"tokens": torch.zeros(12, 24, dtype=torch.int64)}, "tokens"),
        ({"text": None, "features": None}, "text"),
        ({"tau_text": 0.0}, "tau_text"),
        ({"tau_vision": float("nan")}, "tau_vision"),
        ({"alpha": -1.0}, "alpha"),
        ({"text_lengths": [3]}, "text_lengths"),
        ({"backend": "magic"}, "backend"),
    ],
)
def test_bad_input_is_refused_with_the_name_of_the_argument(change, argument):
    parts = dict(zip(("text", "tokens", "features"), sample(3, 12), strict=True))
    with pytest.raises(ValueError, match=argument):
        coverage_affinity(**(parts | change))
