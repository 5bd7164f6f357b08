"""Memory that requests no longer need goes back to the system: C's allocator keeps most of it for what may come."""

import asyncio
import ctypes

_SECONDS = 1.0
"""From the first release to the trim, which so serves all in between; a trim takes milliseconds."""


class FreedMemory:
    """Called when requests have let go of much; soon after, whole free pages are returned. For one event loop."""

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
        self._due: asyncio.TimerHandle | None = None

    def __call__(self) -> None:
        if self._due is None and self._trim is not None:
            self._due = asyncio.get_running_loop().call_later(_SECONDS, self._begin)

    def _begin(self) -> None:
        self._due = None
        if self._trim is not None:
            asyncio.get_running_loop().run_in_executor(None, self._trim, 0)
