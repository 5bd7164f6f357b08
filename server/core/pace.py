"""How fast one owner may go while others are there: what all requests share besides the engine is one event loop."""

import math
from collections.abc import Callable

REQUESTS, IMAGES, FETCHES, BODY_BYTES, FETCHED_BYTES = 50, 200, 50, 64 * 2**20, 32 * 2**20
"""A second. Bytes that are fetched, somebody else sends: they cost a key nothing, and this process what its own do."""
AT_ONCE = 0.25
"""Seconds' worth that passes without a delay where little came before: others wait for all of it."""


class Flow:
    """Lets so much through a second, and AT_ONCE of it without a delay."""

    def __init__(self, per_second: float, clock: Callable[[], float]) -> None:
        self._per_second = per_second
        self._clock = clock
        self._full_at = -math.inf

    def delay(self, size: float) -> float:
        """Seconds to wait after `size` more."""
        now = self._clock()
        self._full_at = max(self._full_at, now - AT_ONCE) + size / self._per_second
        return max(0.0, self._full_at - now)


class Pace:
    """The delays of one owner's requests, images, fetches and bodies, in seconds.

    There are none while `alone` says that nobody else asks. An owner of many cheap requests, or of few with much in
    them, would otherwise have the event loop to itself.
    """

    def __init__(self, clock: Callable[[], float], alone: Callable[[], bool] = lambda: False) -> None:
        self._alone = alone
        self._requests = Flow(REQUESTS, clock)
        self._images = Flow(IMAGES, clock)
        self._fetches = Flow(FETCHES, clock)
        self._bytes = Flow(BODY_BYTES, clock)
        self._fetched = Flow(FETCHED_BYTES, clock)

    def request(self) -> float:
        return 0.0 if self._alone() else self._requests.delay(1)

    def images(self, count: int = 1) -> float:
        """Before images, or a clip's frames, are read, however small: on the way to the model they take turns."""
        return 0.0 if self._alone() else self._images.delay(count)

    def fetch(self) -> float:
        """Before a connection is made to fetch an image, for each of its redirects anew."""
        return 0.0 if self._alone() else self._fetches.delay(1)

    def body(self, size: int) -> float:
        """Before more is read of a body of which `size` more bytes have come."""
        return 0.0 if self._alone() else self._bytes.delay(size)

    def fetched(self, size: int) -> float:
        """Before more is read of an image that is fetched, of which `size` more bytes have come."""
        return 0.0 if self._alone() else self._fetched.delay(size)
