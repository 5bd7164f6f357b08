"""Requests of many callers run together: what waits while one batch runs makes up the next."""

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

from covervlm.server.core.errors import EngineOverloaded
from covervlm.server.core.fairness import FairQueue
from covervlm.server.engines.faults import for_caller, is_out_of_memory

Item = TypeVar("Item")
Result = TypeVar("Result")


_RECENT = 1.0
"""Seconds for which an owner counts as one of several after its last call."""


class MicroBatcher(Generic[Item, Result]):
    """Feeds `run` with up to `max_batch` items at a time, in `executor`, which must run one call at a time.

    max_each: of them, one caller's most while there are several, who otherwise wait for another's items in their own
    batch: where a batch takes as long as its items do one by one, i.e. on a CPU. As many as fit where it is None.

    No timer: a lone request starts at once, and under load batches fill by themselves. Items of one caller keep their
    order and wait for one item of every other caller at most; several callers' items share a batch. A failing batch is
    run again item by item, so that one caller's bad item, or an item too many, costs nobody else an answer.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        executor: Executor,
        *,
        max_batch: int,
        max_waiting: int,
        max_each: int | None = None,
    ) -> None:
        self._run = run
        self._executor = executor
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._max_each = max_each or max_batch
        self._called: dict[str, float] = {}
        self._waiting: FairQueue[tuple[Item, asyncio.Future[Result]]] = FairQueue()
        self._draining: asyncio.Task[None] | None = None

    async def __call__(self, items: Sequence[Item], *, owner: str) -> list[Result]:
        """The results of `items`, in order, which take the turns of `owner`.

        Raises EngineOverloaded where too many wait, or what `run` raised.
        """
        if len(self._waiting) + len(items) > max(self._max_waiting, len(items)):
            raise EngineOverloaded("Too many inputs are waiting to be embedded; try again shortly.", retry_after=1)
        loop = asyncio.get_running_loop()
        self._called[owner] = loop.time()
        futures: list[asyncio.Future[Result]] = [loop.create_future() for _ in items]
        for entry in zip(items, futures, strict=True):
            self._waiting.push(owner, entry)
        if self._draining is None or self._draining.done():
            self._draining = loop.create_task(self._drain())
        try:
            return list(await asyncio.gather(*futures))
        finally:
            # Nothing more is computed for a caller that has left, or one of whose items has failed.
            for future in futures:
                future.cancel()

    async def _drain(self) -> None:
        while self._waiting:
            if batch := self._next():
                await self._finish(batch)

    def _next(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        """Items in the order of their owners' turns, those that nobody waits for left out."""
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        taken: Counter[Hashable] = Counter()
        each = self._max_each if self._several() else self._max_batch
        while self._waiting and len(batch) < self._max_batch:
            owner = next(self._waiting.owners())
            if taken[owner] == each:
                break
            item, future = self._waiting.pop()
            if not future.done():
                batch.append((item, future))
                taken[owner] += 1
        return batch

    def _several(self) -> bool:
        """Whether more than one owner has called of late."""
        since = asyncio.get_running_loop().time() - _RECENT
        self._called = {owner: at for owner, at in self._called.items() if at > since or self._waiting.count(owner)}
        return len(self._called) > 1

    async def _finish(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._executor, self._run, [item for item, _ in batch])
        except Exception as error:
            if len(batch) > 1:
                for entry in batch:
                    await self._finish([entry])
            elif not batch[0][1].done():
                batch[0][1].set_exception(for_caller(error) if is_out_of_memory(error) else error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
