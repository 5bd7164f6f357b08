"""Memory that requests no longer need goes back to the system: C's allocator keeps most of it for what may come.

glibc gives each thread an arena. A trim returns the pages that lie free between used ones, of all arenas, but not what
lies free at the end of a thread's: that goes back when the thread frees it, and only where it is larger than a limit.
The limit grows with the blocks that come and go, to 64 MiB, which a dozen threads may then keep each; here it is fixed.
"""

import asyncio
import contextlib
import ctypes
import math

_SECONDS = 1.0
"""From the first release to the trim, which so serves all in between; a trim takes milliseconds."""
_APART = 5.0
"""From one trim to the next that nothing large asked for: what it returned has to be made anew if it is used again."""

_AT_THE_END = 4 * 2**20
"""Bytes that a thread's arena may keep there. Layers of 1,024 to 2,048 dimensions over 600 tokens spend 2 to 4 % of
their time on pages faulted in, with this limit as with one that grows."""
_IN_ARENAS = 32 * 2**20
"""Bytes up to which a block lies in an arena, as glibc has it once such blocks came and went: others are mapped anew
each time. Given, since a limit that is fixed fixes this one too, at 128 KiB."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class FreedMemory:
    """Called when requests have let go of much; soon after, whole free pages are returned. For one event loop."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self._trim = getattr(library, "malloc_trim", None)  # glibc alone has it
        if self._trim is not None:
            library.mallopt(_M_MMAP_THRESHOLD, _IN_ARENAS)
            library.mallopt(_M_TRIM_THRESHOLD, _AT_THE_END)
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
