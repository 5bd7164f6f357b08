"""Minutes on disk: what is added, what is a gap, what is forgotten, and who may not have the file."""

import sqlite3

import numpy as np
import pytest

from covervlm.server.forecast.counter import Counter, Minute
from covervlm.server.forecast.history import HOURS, NAME, History
from tests.server.forecast.traffic import START, daily, minutes

NOW = (START + 100) * 60


@pytest.fixture
def history(tmp_path):
    history = History(tmp_path / "data")
    yield history
    history.close()


def test_minutes_are_summed_to_hours_and_survive_a_restart(tmp_path):
    counts = daily(48)
    first = History(tmp_path)
    first.write(minutes(counts, bearable=300), now=(START + 48) * 60)
    first.close()
    second = History(tmp_path)
    hours = second.hours(START + 48)
    second.close()
    assert hours.first == START
    assert hours.requests.tolist() == counts.tolist()
    assert hours.crowded.tolist() == (counts > 300).astype(float).tolist()


def test_a_minute_that_is_written_in_parts_is_their_sum(history):
    for crowded in (None, False, True, None, False):
        history.write({START * 60 + minute: Minute(2, crowded) for minute in range(60)}, now=NOW)
    hours = history.hours(START + 1)
    assert (hours.requests.tolist(), hours.crowded.tolist()) == ([600.0], [1.0])


def test_hours_that_nobody_watched_are_gaps_and_hours_without_requests_are_zeros(history):
    history.write(minutes(np.array([60, np.nan, 0, np.nan, 120])), now=NOW)
    np.testing.assert_array_equal(history.hours(START + 6).requests, [60, np.nan, 0, np.nan, 120, np.nan])


@pytest.mark.parametrize(("watched", "expected"), [(60, 60), (45, 60), (30, 60), (29, np.nan)])
def test_an_hour_that_was_watched_in_part_counts_in_proportion_from_its_half_on(history, watched, expected):
    history.write(minutes(np.array([60.0])), now=NOW)
    history.write({(START + 1) * 60 + minute: Minute(1) for minute in range(watched)}, now=NOW)
    np.testing.assert_array_equal(history.hours(START + 2).requests, [60, expected])


def test_five_weeks_are_kept_whatever_comes_and_what_the_clock_got_wrong_is_not(history):
    weeks = minutes(np.full(HOURS + 24, 60.0))
    history.write(weeks, now=(START + HOURS + 24) * 60)
    history.write({10**9: Minute(5)}, now=(START + HOURS + 24) * 60)
    (rows,) = history._db.execute("SELECT count(*) FROM minutes").fetchone()
    assert rows == HOURS * 60
    hours = history.hours(START + HOURS + 24)
    assert (hours.first, len(hours.requests)) == (START + 24, HOURS)


def test_the_file_stays_small_while_minutes_come_and_go(tmp_path):
    history = History(tmp_path)
    sizes = []
    for week in range(12):
        first = START + week * 168
        history.write(minutes(np.full(168, 90.0), first, bearable=1), now=(first + 168) * 60)
        history._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        sizes.append((tmp_path / NAME).stat().st_size)
    history.close()
    assert max(sizes) == pytest.approx(sizes[6], rel=0.05)
    assert max(sizes) < 1.5 * 2**20


def test_a_second_server_and_a_strange_file_are_refused(tmp_path, history):
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        History(tmp_path / "data")
    (tmp_path / NAME).write_text("something else, and enough of it to be no empty file" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        History(tmp_path)


def test_the_file_is_for_the_servers_user_alone(tmp_path, history):
    history.write({NOW: Minute(1)}, now=NOW)
    folder = tmp_path / "data"
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}
    assert modes == {"data": 0o700, NAME: 0o600, f"{NAME}-wal": 0o600}


def test_an_empty_history_is_no_hours(history):
    hours = history.hours(START)
    assert (hours.first, len(hours.requests)) == (START, 0)


def test_what_cannot_be_written_waits_for_a_day_at_most():
    counter = Counter()
    for minute in range(3000):
        counter.watch(minute * 60, crowded=False)
        counter.add(minute * 60 + 1)
        if minute % 500 == 499:
            counter.put_back(counter.take())
    kept = counter.take()
    assert (min(kept), max(kept)) == (3000 - 1440, 2999)
    assert set(map(repr, kept.values())) == {repr(Minute(1, False))}
    assert counter.take() == {}
