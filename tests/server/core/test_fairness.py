"""Turns by owner, without clocks: orders that the test can write down."""

import asyncio

import pytest

from covervlm.server.core.fairness import FairQueue, FairTurns, has_room


def drained(queue):
    return [queue.pop() for _ in range(len(queue))]


def test_owners_are_served_in_turn_and_each_in_order():
    queue = FairQueue()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.push(item[0], item)
    assert (len(queue), queue.count("a"), queue.count("nobody")) == (6, 3, 0)
    assert queue.peek() == "a1"
    assert drained(queue) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_a_newcomer_waits_for_one_item_of_every_other_owner():
    queue = FairQueue()
    for i in range(100):
        queue.push("greedy", f"g{i}")
        queue.push("other", f"o{i}")
    queue.pop()
    queue.push("newcomer", "n")
    assert "n" in [queue.pop() for _ in range(3)]


def test_one_owner_is_served_first_come_first_served():
    queue = FairQueue()
    for i in range(10):
        queue.push(None, i)
    assert drained(queue) == list(range(10))


def test_discarded_items_leave_and_the_others_keep_their_order():
    queue = FairQueue()
    for item in ("a1", "a2", "b1", "c1", "c2"):
        queue.push(item[0], item)
    queue.discard(lambda item: item in ("a1", "b1"))
    assert len(queue) == 3
    assert drained(queue) == ["a2", "c1", "c2"]
    assert not queue


def test_nothing_is_kept_of_owners_that_are_gone():
    queue = FairQueue()
    for i in range(1000):
        queue.push(i, i)
        queue.pop()
        queue.push(-i, i)
        queue.discard(lambda item: True)
    assert not queue._lines


@pytest.mark.parametrize("limit", [9, 90, 256])
def test_however_many_fill_the_queue_a_newcomer_finds_room(limit):
    held = dict.fromkeys(range(4), 0)
    while any(grown := [o for o in held if has_room(mine=held[o], total=sum(held.values()), limit=limit)]):
        for owner in grown:
            held[owner] += has_room(mine=held[owner], total=sum(held.values()), limit=limit)
    assert sum(held.values()) >= limit * 0.75
    assert has_room(mine=0, total=sum(held.values()), limit=limit)


def test_one_owner_alone_fills_most_of_the_queue():
    mine = 0
    while has_room(mine=mine, total=mine, limit=90):
        mine += 1
    assert mine == 80
    assert not has_room(mine=0, total=90, limit=90)


async def test_turns_are_given_in_the_fair_order_and_never_to_more_than_allowed():
    turns, order, at_once = FairTurns(2), [], []

    async def work(name):
        async with turns.turn(name[0]):
            at_once.append(len(turns) - len(turns._waiting))
            order.append(name)
            await asyncio.sleep(0)

    names = ["a1", "a2", "a3", "a4", "a5", "b1"]
    await asyncio.gather(*(work(name) for name in names))
    assert order.index("b1") <= 3
    assert [name for name in order if name[0] == "a"] == names[:5]
    assert max(at_once) == 2
    assert len(turns) == turns.count("a") == 0
    assert not turns._present


async def test_cancelled_waiters_cost_nobody_a_turn():
    """Cancelled before, and in the very moment of, their turn."""
    turns = FairTurns(1)
    opened = asyncio.Event()
    order = []

    async def work(name):
        async with turns.turn(name):
            order.append(name)
            await opened.wait()

    tasks = {name: asyncio.create_task(work(name)) for name in ("first", "early", "late", "last")}
    while len(turns) < 4:
        await asyncio.sleep(0)
    tasks["early"].cancel()
    opened.set()
    while not tasks["first"].done():
        await asyncio.sleep(0)
    tasks["late"].cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert order[0] == "first"
    assert "early" not in order
    assert order[-1] == "last"
    assert len(turns) == 0
    async with asyncio.timeout(5), turns.turn("again"):
        pass


@pytest.mark.parametrize(("at_once", "own"), [(1, 1), (2, 1), (3, 2)])
async def test_an_owner_leaves_a_turn_to_others(at_once, own):
    turns, opened, having = FairTurns(at_once), asyncio.Event(), []

    async def work(name):
        async with turns.turn(name, leaves=1):
            having.append(name)
            await opened.wait()

    tasks = [asyncio.create_task(work("greedy")) for _ in range(5)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert having == ["greedy"] * own
    tasks += [asyncio.create_task(work("other")) for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert having[own:] == ["other"] * (at_once - own)
    opened.set()
    await asyncio.gather(*tasks)
    assert sorted(having) == ["greedy"] * 5 + ["other"] * 2
    assert len(turns) == 0
    assert not turns._having
    assert turns._free == at_once


async def test_thousands_who_leave_together_are_looked_at_a_few_times_each(monkeypatch):
    """A request of thousands of images whose first one is bad: each look at all of them would stall everybody else."""
    turns, looks = FairTurns(1), 0
    discard = FairQueue.discard

    def counted(queue, unwanted):
        nonlocal looks
        looks += len(queue)
        discard(queue, unwanted)

    monkeypatch.setattr(FairQueue, "discard", counted)

    async def work():
        async with turns.turn("greedy"):
            await asyncio.Event().wait()

    async with asyncio.timeout(60), turns.turn("first"):
        tasks = [asyncio.create_task(work()) for _ in range(4000)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (len(turns), len(turns._waiting)) == (1, 0)
        assert looks <= 3 * 4000
    async with asyncio.timeout(5), turns.turn("again"):
        pass
