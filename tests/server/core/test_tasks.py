"""Parts of a request end together, and the threads that they are in with them."""

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from covervlm.server.core.tasks import all_or_none, in_thread, side_by_side

SECONDS = 20


@pytest.fixture
def pool():
    with ThreadPoolExecutor(1) as threads:
        yield threads


async def give(value, turns=0):
    for _ in range(turns):
        await asyncio.sleep(0)
    return value


async def fail(error, turns=0):
    await give(None, turns)
    raise error


async def test_results_come_in_the_order_of_the_parts():
    assert await all_or_none(give(i, 3 - i) for i in range(3)) == [0, 1, 2]
    assert await all_or_none([]) == []


async def test_the_first_failure_is_raised_when_all_others_have_ended():
    ended = []

    async def sibling():
        try:
            await asyncio.Event().wait()
        finally:
            await give(None, 5)
            ended.append(True)

    with pytest.raises(KeyError, match="first") as failure:
        await all_or_none([sibling(), fail(ValueError("second"), 2), fail(KeyError("first"), 1), sibling()])
    assert ended == [True, True]
    assert not isinstance(failure.value, BaseExceptionGroup)


async def test_a_thread_answers_and_fails_like_a_call(pool):
    assert await in_thread(pool, divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await in_thread(pool, divmod, 7, 0)


@pytest.mark.parametrize("cancels", [1, 3])
@pytest.mark.parametrize("error", [None, ValueError("nobody asks any more")])
async def test_who_is_cancelled_waits_for_the_thread_however_often(pool, cancels, error, caplog):
    begun, opened, ended = threading.Event(), threading.Event(), []

    def work():
        begun.set()
        assert opened.wait(SECONDS)
        ended.append(True)
        if error:
            raise error

    task = asyncio.create_task(in_thread(pool, work))
    await asyncio.to_thread(begun.wait, SECONDS)
    for _ in range(cancels):
        task.cancel()
        await give(None, 5)
        assert not task.done()
    opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]
    assert not caplog.records


async def test_what_has_not_begun_is_dropped_at_once(pool):
    opened, ran = threading.Event(), []
    first = asyncio.create_task(in_thread(pool, opened.wait, SECONDS))
    second = asyncio.create_task(in_thread(pool, ran.append, True))
    await give(None, 3)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    opened.set()
    assert await first
    assert not ran


async def counted(name, count, closed, failure=None):
    try:
        for number in range(count):
            await asyncio.sleep(0)
            yield name, number
        if failure is not None:
            raise failure
    finally:
        closed.append(name)


async def test_items_of_several_generators_come_as_they_are_made_each_in_its_order():
    closed = []
    items = [item async for item in side_by_side([counted("a", 3, closed), counted("b", 5, closed)])]
    assert [item for number, item in items if number == 0] == [("a", i) for i in range(3)]
    assert [item for number, item in items if number == 1] == [("b", i) for i in range(5)]
    assert sorted(closed) == ["a", "b"]


async def test_generators_end_together_by_the_first_failure_or_by_their_reader():
    closed = []
    with pytest.raises(KeyError):
        async for _ in side_by_side([counted("a", 10**6, closed), counted("b", 1, closed, KeyError())]):
            pass
    assert sorted(closed) == ["a", "b"]
    stream = side_by_side([counted("c", 10**6, closed), counted("d", 10**6, closed)])
    await anext(stream)
    await stream.aclose()
    assert {"c", "d"} >= set(closed[2:])
    assert all(task is asyncio.current_task() for task in asyncio.all_tasks())


class Large:
    pass


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("threads", [False, True])
async def test_what_a_failed_part_held_is_gone_before_the_garbage_collector_comes(parts, threads):
    held = []

    def fail():
        large = Large()
        held.append(weakref.ref(large))
        raise ValueError(id(large))

    async def part(pool):
        large = Large()
        held.append(weakref.ref(large))
        if threads:
            await in_thread(pool, fail)
        await asyncio.sleep(0)
        raise ValueError(id(large))

    gc.disable()
    try:
        with ThreadPoolExecutor(1) as pool:
            with pytest.raises(ValueError, match=r"\d") as failure:
                await all_or_none([part(pool) for _ in range(parts)])
            del failure
            for _ in range(5):
                await asyncio.sleep(0)
            pool.submit(int).result()  # the thread no longer looks at its last call
        assert held
        assert [ref() for ref in held if ref() is not None] == []
    finally:
        gc.enable()


async def cancelled_with_what_it_holds(make):
    """Cancels what `make` returns a coroutine for, and counts the objects of it that only the collector would free."""
    held = []

    def hold():
        large = Large()
        held.append(weakref.ref(large))
        return large

    async def part(done):
        large = hold()
        if not done:
            await asyncio.Event().wait()
        return large

    async def caller():
        body = hold()
        await make(part)
        return body

    task = asyncio.create_task(caller())
    await give(None, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    await give(None, 10)
    assert held
    return sum(ref() is not None for ref in held)


@pytest.fixture
def uncollected():
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
async def test_what_a_cancelled_caller_held_is_gone_before_the_garbage_collector_comes():
    assert await cancelled_with_what_it_holds(lambda part: all_or_none([part(True), part(True), part(False)])) == 0


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("fails", [False, True])
async def test_what_generators_held_is_gone_before_the_garbage_collector_comes(fails):
    held = []

    async def stream(failing):
        large = Large()
        held.append(weakref.ref(large))
        for number in range(3):
            yield number
        if failing:
            raise KeyError
        del large

    async def read():
        async for _ in side_by_side([stream(False), stream(fails)]):
            pass

    if fails:
        with pytest.raises(KeyError) as failure:
            await read()
        del failure
    else:
        await read()
    await give(None, 10)
    assert len(held) == 2
    assert [ref() for ref in held if ref() is not None] == []
