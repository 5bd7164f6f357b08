"""Finds callbacks that keep an event loop busy: while one runs, nobody else is answered."""

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest_asyncio

LIMIT = 0.05
"""Seconds of the loop's own thread: of a processor, not of a clock, so that a busy machine makes no callback slow."""
TESTS = Path(__file__).parents[2]
FIXTURES = Path(pytest_asyncio.__file__).parent
"""Whose coroutines run the tests' asynchronous fixtures."""


@contextmanager
def watched(limit: float = LIMIT) -> Iterator[list[str]]:
    """Descriptions of the callbacks, on all loops of all threads, that take longer.

    Garbage collection counts for nobody, and steps of the tests' own coroutines are not looked at.
    """
    found: list[str] = []
    collecting = threading.local()

    def collected(phase: str, _: object) -> None:
        if phase == "start":
            collecting.since = time.thread_time()
        else:
            collecting.seconds = getattr(collecting, "seconds", 0.0) + time.thread_time() - collecting.since

    def run(handle: asyncio.Handle) -> None:
        start, before = time.thread_time(), getattr(collecting, "seconds", 0.0)
        plain(handle)
        seconds = time.thread_time() - start - (getattr(collecting, "seconds", 0.0) - before)
        if seconds > limit and not _is_of_a_test(handle):
            found.append(f"{seconds * 1000:.0f} ms of {_name(handle)}")

    plain = asyncio.Handle._run
    gc.callbacks.append(collected)
    asyncio.Handle._run = run
    try:
        yield found
    finally:
        asyncio.Handle._run = plain
        gc.callbacks.remove(collected)


def _task(handle: asyncio.Handle) -> asyncio.Task | None:
    owner = getattr(handle._callback, "__self__", None)
    return owner if isinstance(owner, asyncio.Task) else None


def _is_of_a_test(handle: asyncio.Handle) -> bool:
    code = getattr(getattr(_task(handle), "get_coro", lambda: None)(), "cr_code", None)
    return code is not None and bool({TESTS, FIXTURES} & set(Path(code.co_filename).parents))


def _name(handle: asyncio.Handle) -> str:
    """The callback; of a task, the coroutines that it went through, as far as it waits in them now."""
    task = _task(handle)
    if task is None:
        return repr(handle)
    names, coroutine = [], task.get_coro()
    while coroutine is not None:
        names.append(getattr(coroutine, "__qualname__", type(coroutine).__name__))
        coroutine = getattr(coroutine, "cr_await", None)
    return f"{task.get_name()}: {' > '.join(names)}"
