"""Golden cases, and what the definition promises on series whose parts are known."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covervlm.server.forecast import forecast
from covervlm.server.forecast.decomposition import decompose

GOLDEN = Path(__file__).parents[2] / "golden" / "features"
CASES = json.loads((GOLDEN / "traffic.json").read_text())["cases"]

cases = pytest.mark.parametrize("case", CASES, ids=[case["kind"] for case in CASES])


@pytest.fixture(scope="module")
def golden():
    """golden(case): the case's arrays by name."""
    with np.load(GOLDEN / "traffic.npz") as arrays:
        yield lambda case: {
            name.partition(".")[2]: arrays[name] for name in arrays if name.startswith(f"{case['case']}.")
        }


def rmse(one, other):
    return float(np.sqrt(np.mean((one - other) ** 2)))


@cases
def test_patterns_line_noise_and_forecast_are_the_references(golden, case):
    g = golden(case)
    parts = decompose(g["train"], case["periods"])
    for period in case["periods"]:
        np.testing.assert_allclose(parts.patterns[period], g[f"season{period}"], atol=1e-9)
    t = np.arange(len(g["train"]))
    np.testing.assert_allclose(parts.remainder + parts.intercept + parts.slope * t, g["remainder"], atol=1e-9)
    assert parts.intercept == pytest.approx(case["intercept"])
    assert parts.slope == pytest.approx(case["slope"])
    assert parts.phi == pytest.approx(case["phi"], abs=1e-9)
    ahead = forecast(g["train"], periods=case["periods"], horizon=case["horizon"])
    np.testing.assert_allclose(ahead, g["forecast"], atol=1e-9)


@cases
def test_float32_is_kept_and_enough(golden, case):
    g = golden(case)
    ahead = forecast(g["train"].astype(np.float32), periods=case["periods"], horizon=case["horizon"])
    assert ahead.dtype == np.float32
    np.testing.assert_allclose(ahead, g["forecast"], rtol=1e-4)
    whole = forecast(g["train"].astype(int), periods=case["periods"], horizon=case["horizon"])
    assert whole.dtype == np.float64


@cases
def test_peaks_are_foreseen_as_well_as_the_reference_says_and_better_than_by_arima(golden, case):
    g = golden(case)
    ahead = forecast(g["train"], periods=case["periods"], horizon=case["horizon"])
    high = g["future"] >= np.quantile(g["future"], 0.95)
    assert rmse(ahead, g["future"]) == pytest.approx(case["rmse_ours"], abs=1e-9)
    assert rmse(ahead[high], g["future"][high]) == pytest.approx(case["rmse_peak_ours"], abs=1e-9)
    assert rmse(ahead[high], g["future"][high]) < rmse(g["arima_forecast"][high], g["future"][high])
    assert ahead.max() == pytest.approx(case["peak_forecast"])


def exact(seed, length, periods, horizon):
    """A line with nested seasons that add up to zero, without noise: (past, future)."""
    numbers = np.random.default_rng(seed)
    t = np.arange(length + horizon)
    y = numbers.uniform(100, 300) + numbers.uniform(-0.2, 0.2) * t
    inner = None
    for p in sorted(periods):
        pattern = numbers.normal(0, 20, p)
        # The outer season has no share of the inner one, else nobody could tell them apart.
        pattern -= pattern.mean() if inner is None else pattern.reshape(-1, inner).mean(0)[np.arange(p) % inner]
        y, inner = y + pattern[t % p], p
    return y[:length], y[length:]


@given(
    seed=st.integers(0, 10**6),
    periods=st.sampled_from([(4,), (5,), (4, 12), (5, 15), (6, 18)]),
    more=st.integers(0, 40),
)
@settings(max_examples=40, deadline=None)
def test_a_line_with_nested_seasons_is_continued_exactly(seed, periods, more):
    past, future = exact(seed, 3 * max(periods) + more, periods, 25)
    np.testing.assert_allclose(forecast(past, periods=periods, horizon=25), future, atol=1e-6)
    np.testing.assert_allclose(decompose(past, periods).remainder, 0, atol=1e-6)


@given(seed=st.integers(0, 10**6), share=st.floats(0, 0.3), outage=st.integers(0, 40), start=st.integers(24, 150))
@settings(max_examples=25, deadline=None)
def test_gaps_are_not_zeros_a_series_without_noise_is_continued_exactly_across_them(seed, share, outage, start):
    past, future = exact(seed, 240, (24,), 48)
    past[np.random.default_rng(seed).random(len(past)) < share] = np.nan
    past[start : start + outage] = np.nan
    parts = decompose(past, (24,))
    assert (np.isnan(parts.remainder) == np.isnan(past)).all()
    np.testing.assert_allclose(parts.ahead(48), future, atol=1e-4)


@cases
def test_adding_a_line_changes_no_pattern_and_scaling_scales_all(golden, case):
    y, periods = golden(case)["train"], case["periods"]
    parts = decompose(y, periods)
    lifted = decompose(y + 50 + 3 * np.arange(len(y)), periods)
    for period in periods:
        np.testing.assert_allclose(lifted.patterns[period], parts.patterns[period], atol=1e-8)
        assert parts.patterns[period].mean() == pytest.approx(0, abs=1e-9)
    for factor in (1e-3, 7.0, 1e6):
        scaled = forecast(factor * y, periods=periods, horizon=50)
        np.testing.assert_allclose(scaled, factor * forecast(y, periods=periods, horizon=50), rtol=1e-9)


def test_what_was_left_of_the_last_bucket_fades_from_the_last_that_is_known():
    numbers = np.random.default_rng(3)
    noise = [0.0]
    for shock in numbers.normal(0, 1, 239):
        noise.append(0.8 * noise[-1] + shock)
    y = 100 + 10 * np.sin(np.arange(240) * 2 * np.pi / 24) + np.array(noise)
    y[-2:] = np.nan
    parts = decompose(y, (24,))
    assert 0.6 < parts.phi < 0.95
    t = np.arange(240, 250)
    expected = parts.phi ** np.arange(3, 13) * parts.remainder[237]
    np.testing.assert_allclose(parts.ahead(10) - parts.at(t), expected)


@pytest.mark.parametrize(("length", "periods"), [(71, (24,)), (503, (24, 168)), (0, ())])
def test_fewer_than_three_of_a_period_are_refused(length, periods):
    with pytest.raises(ValueError, match="three of each are needed"):
        decompose(np.ones(length), periods)


@pytest.mark.parametrize("y", [np.zeros(72), np.full(72, 5.0)])
def test_a_level_without_noise_has_no_autoregression(y):
    assert decompose(y, (24,)).phi == 0
    np.testing.assert_allclose(forecast(y, periods=(24,), horizon=9), y[:9], atol=1e-9)
