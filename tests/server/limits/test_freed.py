"""What requests have let go of is seen by the system again."""

import asyncio
import ctypes
import re
import threading
from pathlib import Path

import numpy as np
import pytest

from covervlm.server.core.caller import MUCH, Callers, InFlight
from covervlm.server.limits import freed
from covervlm.server.limits.freed import FreedMemory

SECONDS = 20


def resident():
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1])


async def test_pages_that_lie_free_between_used_ones_go_back(monkeypatch):
    monkeypatch.setattr(freed, "_SECONDS", 0.0)
    give_back = FreedMemory()
    if give_back._trim is None:
        pytest.skip("the C library cannot return free pages")
    blocks = [np.ones(100_000, np.uint8) for _ in range(2000)]  # below the size that has pages of its own
    kept = blocks[::100]
    full = resident()
    del blocks
    give_back()
    async with asyncio.timeout(SECONDS):
        while resident() > full - 150_000_000:
            await asyncio.sleep(0.01)
    assert len(kept) == 20


async def test_what_threads_freed_at_the_end_of_their_memory_goes_back_too(monkeypatch):
    monkeypatch.setattr(freed, "_SECONDS", 0.0)
    library = ctypes.CDLL(None)
    library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    library.free(library.malloc(30 * 2**20))  # from which C's allocator learns to keep as much twice over
    give_back = FreedMemory()
    if give_back._trim is None:
        pytest.skip("the C library cannot return free pages")
    blocks = (ctypes.c_void_p * 300)()
    full = asyncio.Event()
    going = threading.Event()
    loop = asyncio.get_running_loop()

    def come_and_go():
        for place in range(len(blocks)):
            blocks[place] = library.malloc(100_000)
            ctypes.memset(blocks[place], 1, 100_000)
        loop.call_soon_threadsafe(full.set)
        going.wait()
        for block in blocks:
            library.free(block)

    working = asyncio.ensure_future(asyncio.to_thread(come_and_go))
    await full.wait()
    most = resident()
    going.set()
    await working
    give_back()
    async with asyncio.timeout(SECONDS):
        while resident() > most - 25_000_000:
            await asyncio.sleep(0.01)


async def test_many_releases_are_one_trim_and_the_next_ones_another(monkeypatch):
    monkeypatch.setattr(freed, "_SECONDS", 0.0)
    give_back, trimmed = FreedMemory(), []
    give_back._trim = trimmed.append
    for number in (1, 2):
        for _ in range(5):
            give_back()
        async with asyncio.timeout(SECONDS):
            while len(trimmed) < number:
                await asyncio.sleep(0)
    assert trimmed == [0, 0]


async def test_at_rest_memory_is_trimmed_too_but_not_over_and_over(monkeypatch):
    monkeypatch.setattr(freed, "_SECONDS", 0.0)
    give_back, trimmed, asked = FreedMemory(), [], []
    give_back._trim = trimmed.append
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_later", lambda seconds, call: asked.append(seconds) or loop.call_soon(call))
    for number in (1, 2):
        give_back.at_rest()
        give_back.at_rest()
        async with asyncio.timeout(SECONDS):
            while len(trimmed) < number:
                await asyncio.sleep(0)
    assert asked[0] == 0
    assert freed._APART - 1 < asked[1] <= freed._APART
    assert len(asked) == 2


def test_a_trim_that_comes_due_while_the_server_stops_is_left_out(monkeypatch):
    monkeypatch.setattr(freed, "_SECONDS", 0.0)
    give_back, wrong = FreedMemory(), []
    give_back._trim = lambda _: None

    async def stop():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: wrong.append(context))
        await loop.shutdown_default_executor()
        give_back()
        while give_back._due is not None:
            await asyncio.sleep(0)

    asyncio.run(stop())
    assert not wrong


def test_it_is_told_when_nothing_is_held_any_more():
    calls = []
    callers = Callers(memory=InFlight(100, at_rest=lambda: calls.append(0)))
    with callers.request("a") as one:
        one.hold(10)
        with callers.request("b") as other:
            other.hold(10)
        assert not calls
    assert calls == [0]


@pytest.mark.parametrize(("sizes", "told"), [([MUCH], 1), ([MUCH - 1], 0), ([MUCH // 2] * 5, 0), ([2 * MUCH] * 3, 3)])
def test_it_is_told_when_much_of_what_was_held_at_a_time_is_released(sizes, told):
    calls = []
    callers = Callers(memory=InFlight(10 * MUCH, lambda: calls.append(0)))
    for size in sizes:
        with callers.request("a") as caller:
            caller.hold(size)
    assert len(calls) == told
