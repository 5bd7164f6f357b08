"""Micro-batches: callers share them, keep their order, and do not suffer for each other."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from covervlm.server.clip.encoder.micro_batcher import MicroBatcher
from covervlm.server.core.errors import EngineOverloaded


class Model:
    """Doubles numbers, remembers its batches, and waits at a gate; 13 is bad."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()

    def __call__(self, items):
        self.batches.append(list(items))
        self.entered.release()
        assert self.gate.wait(30)
        if 13 in items:
            raise ValueError("13 is bad")
        return [2 * item for item in items]


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def batcher(model):
    with ThreadPoolExecutor(1) as pool:
        yield MicroBatcher(model, pool, max_batch=4, max_waiting=10)
        model.gate.set()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_where_a_batch_costs_what_its_items_do_several_callers_each_have_one_of_it(model):
    with ThreadPoolExecutor(1) as pool:
        batcher = MicroBatcher(model, pool, max_batch=4, max_waiting=99, max_each=1)
        greedy = asyncio.create_task(batcher(list(range(100, 112)), owner="greedy"))
        await asyncio.to_thread(model.entered.acquire)
        light = asyncio.create_task(batcher([7], owner="light"))
        await settle()
        model.gate.set()
        assert await light == [14]
        assert await greedy == [2 * i for i in range(100, 112)]
    assert [len(batch) for batch in model.batches] == [4, 2, *[1] * 7]
    assert model.batches[1] == [104, 7]


async def test_a_lone_caller_has_the_whole_batch(model):
    model.gate.set()
    with ThreadPoolExecutor(1) as pool:
        await MicroBatcher(model, pool, max_batch=4, max_waiting=99, max_each=1)(list(range(8)), owner="me")
    assert [len(batch) for batch in model.batches] == [4, 4]


async def test_a_lone_request_starts_at_once_and_waiting_ones_share_batches(batcher, model):
    first = asyncio.create_task(batcher([1], owner="me"))
    await asyncio.to_thread(model.entered.acquire)
    others = [asyncio.create_task(batcher([10 * i, 10 * i + 1], owner="me")) for i in range(1, 4)]
    await settle()
    model.gate.set()
    assert await first == [2]
    assert [await other for other in others] == [[20, 22], [40, 42], [60, 62]]
    assert model.batches == [[1], [10, 11, 20, 21], [30, 31]]


async def test_a_bad_item_fails_its_caller_only(batcher, model):
    model.gate.set()
    good, bad, fine = await asyncio.gather(
        batcher([1], owner="me"), batcher([2, 13], owner="me"), batcher([3], owner="me"), return_exceptions=True
    )
    assert (good, fine) == ([2], [6])
    assert isinstance(bad, ValueError)


async def test_too_many_waiting_items_are_refused_at_once(batcher, model):
    first = asyncio.create_task(batcher([1], owner="me"))
    await asyncio.to_thread(model.entered.acquire)
    waiting = asyncio.create_task(batcher(list(range(9)), owner="me"))
    await settle()
    with pytest.raises(EngineOverloaded):
        await batcher([1, 2], owner="me")
    model.gate.set()
    await asyncio.gather(first, waiting)


async def test_one_request_may_be_larger_than_the_queue(batcher, model):
    model.gate.set()
    assert await batcher(list(range(13)), owner="me") == [2 * i for i in range(13)]


async def test_items_of_a_caller_that_went_away_are_not_worked_on(batcher, model):
    first = asyncio.create_task(batcher([1], owner="me"))
    await asyncio.to_thread(model.entered.acquire)
    gone, stays = asyncio.create_task(batcher([5, 6], owner="me")), asyncio.create_task(batcher([7], owner="me"))
    await settle()
    gone.cancel()
    await settle()
    model.gate.set()
    assert await stays == [14]
    await first
    assert model.batches == [[1], [7]]


async def test_no_items_need_no_model(batcher, model):
    assert await batcher([], owner="me") == []
    assert model.batches == []


async def test_an_item_of_another_caller_waits_for_one_batch_of_the_greedy_one(batcher, model):
    first = asyncio.create_task(batcher([1], owner="greedy"))
    await asyncio.to_thread(model.entered.acquire)
    greedy = asyncio.create_task(batcher(list(range(100, 109)), owner="greedy"))
    await settle()
    single = asyncio.create_task(batcher([7], owner="single"))
    await settle()
    model.gate.set()
    assert await single == [14]
    assert await greedy == [2 * i for i in range(100, 109)]
    await first
    assert 7 in model.batches[1]
    assert [item for batch in model.batches[1:] for item in batch if item != 7] == list(range(100, 109))


async def test_an_item_without_memory_asks_its_caller_to_come_again(batcher, model, monkeypatch):
    model.gate.set()

    def short_of_memory(items):
        if len(items) > 1 or items == [5]:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return [2 * item for item in items]

    monkeypatch.setattr(batcher, "_run", short_of_memory)
    good, bad = await asyncio.gather(batcher([1, 2], owner="me"), batcher([5], owner="me"), return_exceptions=True)
    assert good == [2, 4]
    assert isinstance(bad, EngineOverloaded)
