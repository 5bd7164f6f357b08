"""Memory that requests no longer need goes back to the system: C's allocator keeps most of it for what may come."""

import asyncio
import contextlib
import ctypes
import math

_SECONDS = 1.0
"""From the first release to the trim, which so serves all in between; a trim takes milliseconds."""


_APART = 5.0
"""From one trim to the next that nothing large asked for: what it returned has to be made anew if it is used again."""


class FreedMemory:
    """Called when requests have let go of much; soon after, whole free pages are returned. For one event loop."""

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
        self._due: asyncio.TimerHandle | None = None
        self._next = -math.inf

    def __call__(self) -> None:
        self._trim_in(_SECONDS)

    def at_rest(self) -> None:
        """Called when no request is left: what a model works with, and texts become, is counted nowhere."""
        self._trim_in(max(_SECONDS, self._next - asyncio.get_running_loop().time()))

    def _trim_in(self, seconds: float) -> None:
        if self._due is None and self._trim is not None:
            self._due = asyncio.get_running_loop().call_later(seconds, self._begin)

    def _begin(self) -> None:
        self._due = None
        self._next = asyncio.get_running_loop().time() + _APART
        if self._trim is not None:
            with contextlib.suppress(RuntimeError):  # the process is about to end, and its threads have
                asyncio.get_running_loop().run_in_executor(None, self._trim, 0)
