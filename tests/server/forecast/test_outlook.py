"""What is told of the hours to come, on traffic whose shape the test knows."""

import numpy as np
import pytest

from covervlm.server.forecast.history import Hours
from covervlm.server.forecast.outlook import AHEAD, look_ahead
from tests.server.forecast.traffic import START, daily

WEEKS = 5 * 168


def hours(requests, crowded=None):
    return Hours(START, requests, np.full(len(requests), np.nan) if crowded is None else crowded)


@pytest.mark.parametrize(("known", "seasons"), [(72, (24,)), (503, (24,)), (504, (24, 168)), (WEEKS, (24, 168))])
def test_seasons_are_continued_once_they_have_been_seen_three_times(known, seasons):
    outlook = look_ahead(hours(daily(known)))
    assert (outlook.seasons, outlook.observed, len(outlook.hours)) == (seasons, known, AHEAD)


@pytest.mark.parametrize("known", [0, 1, 2, 71])
def test_nothing_is_foreseen_from_less_than_three_days(known):
    outlook = look_ahead(hours(daily(known)))
    assert (outlook.observed, outlook.hours, outlook.now, outlook.peak) == (known, (), None, None)


def test_hours_that_are_missing_do_not_count_as_known():
    y = daily(100)
    y[:29] = y[0]
    y[1:30] = np.nan
    assert look_ahead(hours(y)).hours == ()


@pytest.mark.parametrize("start", [0, 7, 20, 100])
def test_the_hours_begin_with_this_one_and_the_peak_is_the_evenings(start):
    outlook = look_ahead(hours(daily(WEEKS + start)))
    assert [hour.start for hour in outlook.hours] == [(START + WEEKS + start + h) * 3600 for h in range(AHEAD)]
    assert outlook.now == outlook.hours[0]
    assert outlook.peak.start // 3600 % 24 == 20
    truth = daily(WEEKS + start + AHEAD)[-AHEAD:]
    assert outlook.peak.expected == pytest.approx(truth.max(), rel=0.25)


def test_the_week_shows_a_quiet_weekend_after_three_weeks():
    friday_night = WEEKS + 5 * 24 - 1
    assert look_ahead(hours(daily(friday_night))).peak.expected < 400
    assert look_ahead(hours(daily(friday_night - 48))).peak.expected > 500


def test_about_95_of_100_hours_keep_to_the_band():
    kept = []
    for seed in range(8):
        y = daily(WEEKS + AHEAD + 24 * seed, seed=seed)
        upper = [hour.upper for hour in look_ahead(hours(y[:-AHEAD][-WEEKS:])).hours]
        kept += list(y[-AHEAD:] <= upper)
    assert 0.88 < np.mean(kept) <= 1


def test_nothing_below_zero_is_expected_and_the_band_is_never_below():
    y = np.where(np.arange(WEEKS) % 24 == 3, 40.0, 0.0)
    for outlook in (look_ahead(hours(y)), look_ahead(hours(np.linspace(500, 0, 200))), look_ahead(hours(np.zeros(80)))):
        assert all(0 <= hour.expected <= hour.upper for hour in outlook.hours)
        assert len(outlook.hours) == AHEAD


def test_seasons_that_grow_with_the_level_are_continued_in_logarithms():
    t = np.arange(WEEKS + AHEAD)
    y = np.expm1(3 + 0.003 * t + 1.5 * np.sin(t * 2 * np.pi / 24))
    expected = [hour.expected for hour in look_ahead(hours(y[:-AHEAD])).hours]
    np.testing.assert_allclose(expected, y[-AHEAD:], rtol=0.01)


def test_an_outage_changes_little_of_what_is_foreseen():
    y = daily(WEEKS)
    whole = np.array([hour.expected for hour in look_ahead(hours(y)).hours])
    y[300:340] = y[-10:-3] = np.nan
    broken = np.array([hour.expected for hour in look_ahead(hours(y)).hours])
    assert np.abs(broken - whole).max() < 0.1 * whole.max()
    y[np.isnan(y)] = 0  # as if nobody had come
    wrong = np.array([hour.expected for hour in look_ahead(hours(y)).hours])
    assert np.abs(wrong - whole).max() > 2 * np.abs(broken - whole).max()


def test_what_the_server_bears_is_told_along():
    y = daily(WEEKS)
    assert look_ahead(hours(y)).bearable is None
    assert 390 < look_ahead(hours(y, (y > 400).astype(float))).bearable < 440
