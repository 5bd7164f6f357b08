"""Turns by owner: whoever asks for much waits behind oneself, not in front of the others."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item")

_SHARE = 8


def has_room(*, mine: int, total: int, limit: int) -> bool:
    """Whether a queue of `total` of at most `limit` items, `mine` of them one owner's, takes another of this owner.

    The last place is for an owner that has none; of the others an owner may hold eight times as many as are left. So
    one owner alone fills eight ninths of a long queue, four greedy ones 32 parts of 33, and who comes next finds room
    (dynamic thresholds, Choudhury and Hahne 1998).
    """
    left = limit - total
    return left > 0 and (mine == 0 or mine < _SHARE * (left - 1))


class FairQueue(Generic[Item]):
    """A queue that serves its owners in turn, and each owner's items in their order.

    An owner that comes anew waits for one item of every other owner at most. Nothing is kept of owners without items.
    """

    def __init__(self) -> None:
        self._lines: OrderedDict[Hashable, deque[Item]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def count(self, owner: Hashable) -> int:
        """How many of the items are this owner's."""
        return len(self._lines.get(owner, ()))

    def push(self, owner: Hashable, item: Item) -> None:
        self._lines.setdefault(owner, deque()).append(item)
        self._length += 1

    def peek(self) -> Item:
        """The item that `pop` would return."""
        return next(iter(self._lines.values()))[0]

    def pop(self) -> Item:
        """Take the next item; its owner's next one has to wait for everybody else's."""
        owner, line = next(iter(self._lines.items()))
        item = line.popleft()
        self._length -= 1
        if line:
            self._lines.move_to_end(owner)
        else:
            del self._lines[owner]
        return item

    def discard(self, unwanted: Callable[[Item], bool]) -> None:
        """Drop the items that nobody waits for any more."""
        for owner, line in list(self._lines.items()):
            kept = deque(item for item in line if not unwanted(item))
            self._length -= len(line) - len(kept)
            if kept:
                self._lines[owner] = kept
            else:
                del self._lines[owner]


class FairTurns:
    """Lets at most `at_once` tasks of one event loop go on at a time; who waits gets a turn in the fair order."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()
        self._present: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        """Tasks that wait for a turn or have one."""
        return self._present.total()

    def count(self, owner: Hashable) -> int:
        """This owner's part of them."""
        return self._present[owner]

    @asynccontextmanager
    async def turn(self, owner: Hashable) -> AsyncIterator[None]:
        """The time of one turn, which begins when it is the owner's."""
        self._present[owner] += 1
        try:
            await self._wait(owner)
            try:
                yield
            finally:
                self._pass_on()
        finally:
            self._present[owner] -= 1
            if not self._present[owner]:
                del self._present[owner]

    async def _wait(self, owner: Hashable) -> None:
        if self._free:
            self._free -= 1
            return
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.push(owner, called)
        try:
            await called
        except asyncio.CancelledError:
            if called.cancelled():
                self._waiting.discard(lambda future: future is called)
            else:
                # Called and cancelled in the same moment: the turn is another's.
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            called = self._waiting.pop()
            if not called.done():
                called.set_result(None)
                return
        self._free += 1
