"""Requests of many callers run together: what waits while one batch runs makes up the next."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

from covervlm.server.core.errors import EngineOverloaded
from covervlm.server.core.fairness import FairQueue
from covervlm.server.engines.faults import for_caller, is_out_of_memory

Item = TypeVar("Item")
Result = TypeVar("Result")


class MicroBatcher(Generic[Item, Result]):
    """Feeds `run` with up to `max_batch` items at a time, in `executor`, which must run one call at a time.

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
    ) -> None:
        self._run = run
        self._executor = executor
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: FairQueue[tuple[Item, asyncio.Future[Result]]] = FairQueue()
        self._draining: asyncio.Task[None] | None = None

    async def __call__(self, items: Sequence[Item], *, owner: str) -> list[Result]:
        """The results of `items`, in order, which take the turns of `owner`.

        Raises EngineOverloaded where too many wait, or what `run` raised.
        """
        if len(self._waiting) + len(items) > max(self._max_waiting, len(items)):
            raise EngineOverloaded("Too many inputs are waiting to be embedded; try again shortly.", retry_after=1)
        loop = asyncio.get_running_loop()
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
            batch: list[tuple[Item, asyncio.Future[Result]]] = []
            while self._waiting and len(batch) < self._max_batch:
                item, future = self._waiting.pop()
                if not future.done():
                    batch.append((item, future))
            if batch:
                await self._finish(batch)

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
