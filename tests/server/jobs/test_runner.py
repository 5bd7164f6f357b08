"""Jobs: owners take turns, cancelled work is dropped at once, and what queued work holds is counted."""

import asyncio
import gc
import threading
import weakref

import pytest
import pytest_asyncio

from covervlm.server.core.caller import Caller, InFlight
from covervlm.server.core.errors import EngineOverloaded, QuotaExceeded
from covervlm.server.jobs.runner import JobRunner
from covervlm.server.store import Store
from covervlm.server.store.database import Database

ME, YOU = Caller("me"), Caller("you")


@pytest.fixture
def store():
    store = Store(Database(None))
    yield store
    store.close()


@pytest_asyncio.fixture
async def jobs(store):
    jobs = JobRunner(store, max_unfinished=3, turn_seconds=0.01)
    yield jobs
    await jobs.stop()


async def end(jobs, owner, job):
    async for state in jobs.watch(owner, job.id):
        last = state
    return last.state


def endless(report):
    while True:
        report(0.5)


def short(report):
    report(0.5)


async def test_an_endless_job_delays_another_owners_by_turns_only(jobs):
    mine = await jobs.submit(ME, "fit", lambda _: endless)
    yours = [await jobs.submit(YOU, "fit", lambda _: short) for _ in range(3)]
    assert [await end(jobs, "you", job) for job in yours] == ["succeeded"] * 3
    assert (await jobs.get("me", mine.id)).state == "running"
    await jobs.cancel("me", mine.id)
    assert await end(jobs, "me", mine) == "cancelled"


async def test_of_jobs_that_have_begun_only_one_works_at_a_time(jobs):
    working, most, lock = 0, 0, threading.Lock()

    def work(report):
        nonlocal working, most
        for _ in range(2000):
            with lock:
                working += 1
                most = max(most, working)
            with lock:
                working -= 1
            report.check()

    started = [(owner, await jobs.submit(Caller(owner), "fit", lambda _: work)) for owner in "abcde" for _ in range(2)]
    assert {await end(jobs, owner, job) for owner, job in started} == {"succeeded"}
    assert most == 1


async def test_an_owners_jobs_run_one_after_another(jobs):
    order = []

    def numbered(number):
        def work(report):
            order.append(number)
            report(0.5)
            order.append(number)

        return work

    started = [await jobs.submit(ME, "fit", lambda _, n=n: numbered(n)) for n in range(3)]
    for job in started:
        await end(jobs, "me", job)
    assert order == [0, 0, 1, 1, 2, 2]


class Pictures:
    """What a job holds."""


async def test_a_cancelled_job_that_waits_drops_what_it_holds_and_frees_its_owners_place_at_once(jobs):
    memory = InFlight(1200)
    caller = Caller("me", memory=memory)
    first = await jobs.submit(caller, "fit", lambda _: endless)
    pictures = [Pictures(), Pictures()]
    gone = [weakref.ref(entry) for entry in pictures]
    waiting = [
        await jobs.submit(caller, "fit", lambda _, p=pictures[i]: lambda report: p and short(report), size=200)
        for i in range(2)
    ]
    del pictures
    caller.release()
    assert memory.bytes == 400
    with pytest.raises(QuotaExceeded):
        await jobs.submit(ME, "fit", lambda _: short)
    for job in waiting:
        assert (await jobs.cancel("me", job.id)).state == "cancelled"
    while memory.bytes:
        await asyncio.sleep(0)
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert (await jobs.get("me", first.id)).state == "running"
    assert jobs.unfinished("me") == 1
    for _ in range(2):
        await jobs.submit(ME, "fit", lambda _: short)


async def test_unfinished_jobs_may_hold_half_of_the_memory_for_requests(jobs):
    memory = InFlight(1100)
    await jobs.submit(Caller("me", memory=memory), "fit", lambda _: endless, size=400)
    with pytest.raises(EngineOverloaded):
        await jobs.submit(Caller("you", memory=memory), "fit", lambda _: endless, size=200)


async def test_the_jobs_of_one_key_leave_a_quarter_of_that_to_others(jobs):
    memory = InFlight(1000)
    await jobs.submit(Caller("me", memory=memory), "fit", lambda _: endless, size=300)
    with pytest.raises(EngineOverloaded, match="A key's"):
        await jobs.submit(Caller("me", memory=memory), "fit", lambda _: endless, size=100)
    await jobs.submit(Caller("you", memory=memory), "fit", lambda _: endless, size=100)


async def test_what_a_job_holds_is_counted_once_and_until_it_has_ended(jobs):
    memory = InFlight(1000)
    caller = Caller("me", memory=memory)
    caller.hold(300)
    job = await jobs.submit(caller, "fit", lambda _: endless, size=200)
    assert memory.bytes == 300
    caller.release()
    assert memory.bytes == 200
    await jobs.cancel("me", job.id)
    await end(jobs, "me", job)
    while memory.bytes:
        await asyncio.sleep(0)
