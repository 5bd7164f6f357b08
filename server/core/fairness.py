"""Turns by owner: whoever asks for much waits behind their own requests, and holds nobody else up."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item")

_SHARE = 8


def has_room(*, mine: int, total: int, limit: int) -> bool:
    """Whether a queue of `total` of at most `limit` items, `mine` of them one owner's, takes another of this owner.

    The last place is for an owner that has none; of the other places an owner may hold eight times as many as are free.
    So one owner alone fills eight ninths of a long queue, four greedy ones 32 parts of 33, and the next one finds room
    (dynamic thresholds, Choudhury and Hahne 1998).
    """
    left = limit - total
    return left > 0 and (mine == 0 or mine < _SHARE * (left - 1))


class FairQueue(Generic[Item]):
    """A queue that serves its owners in turn, and each owner's items in their order.

    A new owner waits for at most one item of every other owner. Nothing is kept of owners without items.
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
        return self.peek_of(next(iter(self._lines)))

    def peek_of(self, owner: Hashable) -> Item:
        """The item that `pop_of` would return."""
        return self._lines[owner][0]

    def pop(self) -> Item:
        """Take the next item; its owner's next one has to wait for everybody else's."""
        return self.pop_of(next(iter(self._lines)))

    def owners(self) -> Iterator[Hashable]:
        """In the order of their turns."""
        return iter(self._lines)

    def pop_of(self, owner: Hashable) -> Item:
        """Take the owner's next item, as `pop` does when it is the owner's turn."""
        line = self._lines[owner]
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
    """Lets at most `at_once` tasks of one event loop run at a time; those that wait get their turns in fair order."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._free = at_once
        self._waiting: FairQueue[tuple[asyncio.Future[None], int]] = FairQueue()
        self._cancelled = 0
        self._present: Counter[Hashable] = Counter()
        self._having: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        """Tasks that wait for a turn or have one."""
        return self._present.total()

    def count(self, owner: Hashable) -> int:
        """This owner's part of them."""
        return self._present[owner]

    @asynccontextmanager
    async def turn(self, owner: Hashable, *, leaves: int = 0) -> AsyncIterator[None]:
        """A context that is one turn, entered once the owner's has come.

        leaves: this owner leaves so many turns to the others, so that nobody is stuck behind its long tasks.
        """
        most = max(1, self._at_once - leaves)
        self._present[owner] += 1
        try:
            await self._wait(owner, most)
            try:
                yield
            finally:
                self._end(owner)
        finally:
            _decrement(self._present, owner)

    async def _wait(self, owner: Hashable, most: int) -> None:
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.push(owner, (called, most))
        self._call()
        try:
            await called
        except asyncio.CancelledError:
            if called.cancelled():
                self._drop_cancelled()
            else:
                # Called and cancelled at the same moment: the turn goes to somebody else.
                self._end(owner)
            raise

    def _end(self, owner: Hashable) -> None:
        _decrement(self._having, owner)
        self._free += 1
        self._call()

    def _call(self) -> None:
        """Give the free turns to those who wait and may have one."""
        while self._free:
            owner = next((owner for owner in self._waiting.owners() if self._may(owner)), None)
            if owner is None:
                return
            called, _ = self._waiting.pop_of(owner)
            if called.done():
                self._cancelled -= 1
            else:
                self._free -= 1
                self._having[owner] += 1
                called.set_result(None)

    def _drop_cancelled(self) -> None:
        """Of those that wait; many at a time, since each time looks at all of them."""
        self._cancelled += 1
        if 2 * self._cancelled > len(self._waiting):
            self._waiting.discard(lambda entry: entry[0].done())
            self._cancelled = 0

    def _may(self, owner: Hashable) -> bool:
        return self._having[owner] < self._waiting.peek_of(owner)[1]


def _decrement(counter: Counter[Hashable], owner: Hashable) -> None:
    counter[owner] -= 1
    if not counter[owner]:
        del counter[owner]
