"""Concurrent parts of a request and its work in threads, all of which end with the request."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Executor
from typing import TypeVar, TypeVarTuple

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


async def all_or_none(parts: Iterable[Coroutine[None, None, Result]]) -> list[Result]:
    """What all of `parts` return, in order.

    Once one of them fails, the others are cancelled, and have ended when its exception is raised.
    Of several that fail at once, the first to do so is raised. Nothing refers to it in a circle: what the failed parts
    held would stay until the garbage collector comes by.
    """
    tasks, first = [], None
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part) for part in parts]
    except BaseExceptionGroup as failed:
        first = failed.exceptions[0]
        failed.__traceback__ = None  # whose frames refer to it
    except asyncio.CancelledError as cancelled:
        cancelled.__traceback__ = None  # of which the group's own frame refers to it
        raise
    try:
        if first is not None:
            raise first
        return [task.result() for task in tasks]
    finally:
        del first, tasks, group


async def side_by_side(streams: Sequence[AsyncGenerator[Result, None]]) -> AsyncGenerator[tuple[int, Result], None]:
    """Items of several generators as they come, each with its generator's number; all are closed once this ends.

    The first exception of any is raised. No generator runs ahead of a slow reader.
    """
    arrived: asyncio.Queue[tuple[int, Result | None, Exception | None]] = asyncio.Queue(1)

    async def read(number: int, stream: AsyncGenerator[Result, None]) -> None:
        failure = None
        async with contextlib.aclosing(stream):
            try:
                async for item in stream:
                    await arrived.put((number, item, None))
            except Exception as error:
                failure = error
        try:
            await arrived.put((number, None, failure))
        finally:
            del failure  # whose frames refer to this one

    readers = [asyncio.ensure_future(read(number, stream)) for number, stream in enumerate(streams)]
    left = len(readers)
    try:
        while left:
            number, item, failure = await arrived.get()
            if failure is not None:
                raise failure
            if item is None:
                left -= 1
            else:
                yield number, item
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        failure = None  # as above


async def in_thread(
    pool: Executor,
    call: Callable[[*Arguments], Result],
    *args: *Arguments,
    stop: Callable[[], None] = lambda: None,
) -> Result:
    """`call(*args)` in a thread of the pool; when this returns or raises, the thread has finished with it.

    A thread cannot be stopped, so a cancelled caller waits for it: what it holds is still counted for the request, and
    its turn is not given away. A call that has not begun is dropped; one that has is told to end soon by `stop`.
    """
    work = pool.submit(call, *args)
    waiting = asyncio.wrap_future(work)
    outer = asyncio.shield(waiting)
    try:
        return await outer
    except asyncio.CancelledError:
        if not work.cancel():
            stop()
            while not waiting.done():
                try:
                    await asyncio.wait([waiting])
                except asyncio.CancelledError:
                    continue
            waiting.exception()  # marks it as retrieved
        raise
    finally:
        del work, waiting, outer  # an exception must not hold, by its frames, what holds it
