"""The replayed queue against a queue's own recursion, and the made-up traffic against what it promises."""

import numpy as np
import pytest
from foreseen import replay, traffic
from foreseen.traffic import WEEK


def waits(moments, work):
    """Lindley's recursion: seconds that each of a single server's requests waits for its turn."""
    found = [0.0]
    for before, gap in zip(work[:-1], np.diff(moments), strict=True):
        found.append(max(0.0, found[-1] + before - gap))
    return np.array(found)


@pytest.fixture(scope="module")
def moments():
    return traffic.arrivals(np.array([3000.0, 5500.0, 2000.0]), seed=0)


@pytest.mark.parametrize("serve", [replay.fixed, lambda moments: replay.by_load(moments)[0]])
def test_a_first_token_comes_after_the_wait_and_the_work_of_its_budget(moments, serve):
    found = serve(moments)
    capacity = np.interp(found.budget, [64, 192], [1 / 1.73, 1 / 1.12])
    np.testing.assert_allclose(found.first_token, waits(moments, capacity) + capacity, atol=1e-6)
    assert found.budget.max() == 192


def test_the_minutes_written_down_are_those_of_the_requests(moments):
    found, minutes = replay.by_load(moments)
    assert list(minutes) == list(range(int(moments[-1] // 60) + 1))
    assert [minutes[m].requests for m in minutes] == np.bincount((moments // 60).astype(int)).tolist()
    crowded = [minute.crowded for minute in minutes.values()]
    assert not any(crowded[:30])
    assert sum(crowded[60:120]) > 20
    assert found.budget.min() < 192


def test_a_peak_that_the_past_foretells_is_met_with_fewer_tokens_from_ten_minutes_before():
    level = np.tile(np.where(np.arange(24) == 12, 5200.0, 400.0), 5)
    moments = traffic.arrivals(level, seed=1)
    start = 4 * 24 * 3600.0
    day = moments[moments >= start]
    _, past = replay.by_load(moments[moments < start])
    found = replay.anticipating(day, past, start)
    before = (day > start + 11 * 3600 + 3000) & (day < start + 12 * 3600)
    assert found.budget[before].max() < 192
    quiet = day < start + 11 * 3600
    assert np.quantile(found.budget[quiet], 0.05) == 192


def test_traffic_is_the_same_for_a_seed_and_the_requests_are_as_many_as_the_rates_say():
    for shape in traffic.SHAPES:
        level = traffic.rates(shape, 2 * WEEK, 500, 3)
        assert (level == traffic.rates(shape, 2 * WEEK, 500, 3)).all()
        assert (level > 0).all()
        assert len(traffic.arrivals(level, 3)) == pytest.approx(level.sum(), rel=0.02)
        assert (np.diff(traffic.arrivals(level, 3)) >= 0).all()
        assert traffic.counts(level, 3).sum() == pytest.approx(level.sum(), rel=0.02)
