"""What reading a stranger's bytes may cost, whatever they are: a thread's time, and memory at its peak."""

import ctypes
import gc
import resource
import time
from collections.abc import Callable
from pathlib import Path

SECONDS = 0.25
"""Of the processor, in which nobody else may be answered."""
MEBIBYTES = 64


class TooSlow(AssertionError):
    pass


class TooLarge(AssertionError):
    pass


def bounded(target: Callable[[bytes], None], data: bytes, again: Callable[[bytes], None] | None = None) -> None:
    """Call the target. Raises TooSlow or TooLarge beyond the bounds, and whatever it raises.

    A second try counts, by `again` where it is given: the first may pay for what is made once, for a collection of
    garbage, or for counting the branches that it takes.
    """
    if not _within(target, data) and not _within(again or target, data):
        raise TooSlow(f"{len(data)} bytes took more than {SECONDS} s")


def _within(target: Callable[[bytes], None], data: bytes) -> bool:
    ctypes.CDLL(None).malloc_trim(0)  # what earlier work has freed would be taken again without a trace
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, began = _peak(), time.thread_time()
    target(data)
    seconds, grown = time.thread_time() - began, _peak() - before
    if grown > MEBIBYTES:
        raise TooLarge(f"{len(data)} bytes took {grown:.0f} MiB")
    if seconds > SECONDS:
        gc.collect()
    return seconds <= SECONDS


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
