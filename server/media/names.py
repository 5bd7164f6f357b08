"""Host names to addresses, by the system's resolver in a few threads of their own."""

import asyncio
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakValueDictionary

_THREADS = 8


class Names:
    """A look-up cannot be cancelled, only abandoned: its thread is busy until the resolver gives up.

    So one owner's look-ups, abandoned ones included, take at most half of the threads.
    """

    def __init__(self, threads: int = _THREADS) -> None:
        self._share = threads // 2
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="names")
        self._owners: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def __call__(self, host: str, port: int, owner: str) -> Sequence[str]:
        """The host's addresses. Raises OSError or UnicodeError where there are none."""
        free = self._owners.setdefault(owner, asyncio.Semaphore(self._share))
        await free.acquire()
        found = asyncio.get_running_loop().run_in_executor(self._pool, _look_up, host, port)

        def end(done: asyncio.Future[Sequence[str]]) -> None:
            free.release()
            if not done.cancelled():
                done.exception()  # marks it as retrieved, since the caller may have left

        found.add_done_callback(end)
        return await asyncio.shield(found)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str, port: int) -> Sequence[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
