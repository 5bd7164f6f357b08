"""The life of the counts: watched, written, restarted, foreseen; the clock is the test's."""

import asyncio
import contextlib
import logging
import sqlite3

import numpy as np
import pytest

from covervlm.server.forecast.forecaster import Forecaster
from covervlm.server.forecast.history import NAME, History
from tests.server.forecast.traffic import START, Clock, daily, minutes

WEEKS = 5 * 168


@pytest.fixture
def clock():
    return Clock((START + WEEKS) * 3600.0)


def seeded(folder, bearable=None, hours=WEEKS):
    history = History(folder)
    history.write(minutes(daily(hours), bearable=bearable), now=(START + hours) * 60)
    history.close()


def requests_of(folder, until):
    history = History(folder)
    hours = history.hours(until)
    history.close()
    return hours


async def test_minutes_with_and_without_requests_are_written_and_an_outage_is_a_gap(tmp_path, clock):
    first = clock.now
    for begin in (0, 3):  # hours; in the second and third nobody runs
        clock.now = first + begin * 3600
        forecaster = Forecaster(tmp_path, clock=clock)
        await forecaster.start()
        for minute in range(60):
            clock.now = first + begin * 3600 + minute * 60
            if minute < 30:
                forecaster.count(clock.now)
            await forecaster.tick()
        await forecaster.stop()
    hours = requests_of(tmp_path, START + WEEKS + 4)
    np.testing.assert_array_equal(hours.requests, [30, np.nan, np.nan, 30])


async def test_a_new_hour_brings_a_new_outlook_and_the_same_hour_the_same(tmp_path, clock):
    seeded(tmp_path)
    forecaster = Forecaster(tmp_path, clock=clock)
    assert forecaster.outlook.hours == ()
    await forecaster.start()
    outlook = await forecaster.look()
    assert outlook.hours[0].start == clock.now
    clock.now += 3599
    assert await forecaster.look() is outlook
    clock.now += 1
    assert (await forecaster.look()).hours[0].start == clock.now
    await forecaster.stop()


async def test_many_who_look_at_once_wait_for_one_outlook(tmp_path, clock):
    seeded(tmp_path)
    forecaster = Forecaster(tmp_path, clock=clock)
    await forecaster.start()
    outlooks = await asyncio.gather(*(forecaster.look() for _ in range(20)))
    assert len({id(outlook) for outlook in outlooks}) == 1
    await forecaster.stop()


async def test_the_last_minute_of_an_hour_is_in_the_next_hours_outlook(tmp_path, clock):
    forecaster = Forecaster(tmp_path, clock=clock)
    await forecaster.start()
    for _ in range(60):
        await forecaster.tick()
        forecaster.count(clock.now)
        clock.now += 60
    assert (await forecaster.look()).observed == 1
    await forecaster.stop()
    assert requests_of(tmp_path, START + WEEKS + 1).requests.tolist() == [60]


async def test_the_load_is_that_of_this_hour_or_from_ten_minutes_before_of_the_next(tmp_path, clock):
    seeded(tmp_path, bearable=400)
    forecaster = Forecaster(tmp_path, clock=clock)
    await forecaster.start()
    outlook = await forecaster.look()
    loads = [hour.expected / outlook.bearable for hour in outlook.hours]
    for hour in range(24):
        start = (START + WEEKS + hour) * 3600
        clock.now = start + 2999
        assert forecaster.excess() == loads[hour]
        clock.now = start + 3000
        assert forecaster.excess() == max(loads[hour : hour + 2])
    assert max(loads) > 1.2
    await forecaster.stop()


async def test_without_crowded_hours_no_load_is_known(tmp_path, clock):
    seeded(tmp_path)
    forecaster = Forecaster(tmp_path, clock=clock)
    await forecaster.start()
    assert len((await forecaster.look()).hours) == 25
    assert forecaster.excess() == 0
    await forecaster.stop()


async def test_the_second_server_of_a_folder_forecasts_from_memory_and_says_so(tmp_path, clock, caplog):
    first, second = Forecaster(tmp_path, clock=clock), Forecaster(tmp_path, clock=clock)
    await first.start()
    with caplog.at_level(logging.WARNING):
        await second.start()
    assert "give each server a --data-dir" in caplog.text
    second.count(clock.now)
    await second.tick()
    await second.stop()
    await first.stop()
    assert len(requests_of(tmp_path, START + WEEKS + 1).requests) == 0


def execute(file, statement, *values):
    with contextlib.closing(sqlite3.connect(file)) as db, db:
        db.execute(statement, values)


def other_columns(file):
    file.unlink()
    execute(file, "CREATE TABLE minutes (x)")


def torn_pages(file):
    data = bytearray(file.read_bytes())
    data[4096:] = bytes(range(256)) * (len(data[4096:]) // 256)
    file.write_bytes(data)


def no_database(file):
    file.write_bytes(b"no database" * 1000)


@pytest.mark.parametrize("damage", [other_columns, torn_pages, no_database])
async def test_a_damaged_file_is_told_of_and_requests_are_counted_in_memory(tmp_path, clock, caplog, damage):
    seeded(tmp_path)
    damage(tmp_path / NAME)
    forecaster = Forecaster(tmp_path, clock=clock)
    with caplog.at_level(logging.WARNING):
        await forecaster.start()
    assert "move the file away" in caplog.text
    await forecaster.tick()
    assert (await forecaster.look()).hours == ()
    await forecaster.stop()


@pytest.mark.parametrize("requests", [2**63 - 1, -5, "many", 1.5])
async def test_counts_that_no_minute_has_are_forgotten(tmp_path, clock, requests):
    seeded(tmp_path)
    execute(tmp_path / NAME, "UPDATE minutes SET requests = ? WHERE minute % 60 = 7", requests)
    forecaster = Forecaster(tmp_path, clock=clock)
    await forecaster.start()
    outlook = await forecaster.look()
    await forecaster.stop()
    plain = daily(WEEKS)
    assert len(outlook.hours) == 25
    assert max(hour.expected for hour in outlook.hours) < 2 * plain.max()


async def test_a_history_that_cannot_be_read_leaves_the_forecast_as_it_is(tmp_path, clock, caplog, monkeypatch):
    seeded(tmp_path)
    forecaster = Forecaster(tmp_path, clock=clock)
    await forecaster.start()
    before = await forecaster.look()
    monkeypatch.setattr(History, "hours", lambda *_: (_ for _ in ()).throw(sqlite3.DatabaseError("malformed")))
    clock.now += 3600
    with caplog.at_level(logging.WARNING):
        assert await forecaster.look() is before
    assert "malformed" in caplog.text
    await forecaster.stop()


async def test_a_disk_that_fails_loses_nothing_and_is_told_of_once(tmp_path, clock, caplog, monkeypatch):
    forecaster = Forecaster(tmp_path, clock=clock)
    await forecaster.start()
    write = History.write
    monkeypatch.setattr(History, "write", lambda *_, **__: (_ for _ in ()).throw(sqlite3.OperationalError("full")))
    with caplog.at_level(logging.WARNING):
        for minute in range(60):
            clock.now = (START + WEEKS) * 3600 + minute * 60
            forecaster.count(clock.now)
            await forecaster.tick()
    assert caplog.text.count("cannot be written") == 1
    monkeypatch.setattr(History, "write", write)
    await forecaster.stop()
    assert requests_of(tmp_path, START + WEEKS + 1).requests.tolist() == [60]


async def test_starting_twice_and_stopping_what_never_started_are_harmless(tmp_path, clock):
    forecaster = Forecaster(tmp_path, clock=clock)
    await forecaster.start()
    await forecaster.start()
    await forecaster.stop()
    await Forecaster(tmp_path / "never", clock=clock).stop()
    assert not (tmp_path / "never").exists()
    assert (tmp_path / NAME).exists()
