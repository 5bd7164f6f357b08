"""Who calls the server, and how much of it they may use: one value that goes with a request from edge to engine."""

import functools
import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from covervlm.server.core.errors import EngineOverloaded, RateLimited
from covervlm.server.core.pace import Pace

ANONYMOUS = "anonymous"
"""Owner of everything that is made without an API key."""
MUCH = 16 * 2**20
PRESENT = 0.1
"""Seconds after an answer for which its caller is still there: one with one request after another would else be gone
between any two of them, and what somebody else sends in those moments would have no pace."""
_SHARE = 3
"""How many times the memory that is free one key may hold: three quarters of it all while nobody else needs any."""


@dataclass(frozen=True)
class CallerLimits:
    """What one owner may do; None does not limit."""

    requests_per_minute: int | None = None
    concurrent_requests: int | None = None
    images_per_minute: int | None = None


class InFlight:
    """Memory of all requests in flight together: their bodies, and the images decoded out of them, in bytes.

    given_back: called whenever MUCH of what was held at a time is held no more. at_rest: when nothing is held any more.
    """

    def __init__(
        self,
        limit: int,
        given_back: Callable[[], None] = lambda: None,
        at_rest: Callable[[], None] = lambda: None,
    ) -> None:
        self.limit = limit
        self.bytes = 0
        self.held_by: Counter[str] = Counter()
        self._most = 0
        self._given_back = given_back
        self._at_rest = at_rest
        self.kept_by: Counter[str] = Counter()
        """The part of it that is held by work which outlives its request, such as a job."""
        self.reclaim: Callable[[], bool] = lambda: False
        """Gives back what is held for work that nobody waits for; whether that was anything. Asked before a request is
        refused for want of room."""

    def take(self, owner: str, size: int) -> None:
        self.bytes += size
        self.held_by[owner] += size
        self._most = max(self._most, self.bytes)

    def give(self, owner: str, size: int) -> None:
        self.bytes -= size
        self.held_by[owner] -= size
        if not self.held_by[owner]:
            del self.held_by[owner]
        if self._most - self.bytes >= MUCH:
            self._most = self.bytes
            self._given_back()
        if not self.bytes:
            self._at_rest()


class Caller:
    """The caller of one request, made by authentication; used on the event loop.

    `owner` is the name under which the server files what belongs to the caller, and by which callers take turns.
    """

    def __init__(
        self,
        owner: str = ANONYMOUS,
        *,
        images: "_Bucket | None" = None,
        memory: InFlight | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.owner = owner
        self.pace = pace or Pace(time.monotonic, alone=lambda: True)
        self._images = images
        self._memory = memory
        self._held = 0
        self._released = False

    @property
    def has_key(self) -> bool:
        """False where the server has no keys: all callers are then one owner, which need not leave room for others."""
        return self.owner != ANONYMOUS

    def charge_image(self) -> None:
        """Count an image or video against the owner. Raises RateLimited."""
        if self._images is not None:
            self._images.take("images")

    def check_room(self, size: int) -> None:
        """Raises EngineOverloaded where requests in flight may not hold `size` more bytes.

        A key leaves room to others: with all its requests it holds at most _SHARE times what is then still free.
        """
        memory = self._memory
        if memory is None or not size:
            return
        refusal = self._refusal(memory, size)
        if refusal is not None and memory.reclaim():
            refusal = self._refusal(memory, size)
        if refusal is not None:
            raise EngineOverloaded(refusal, retry_after=1)

    def _refusal(self, memory: InFlight, size: int) -> str | None:
        left = memory.limit - memory.bytes - size
        if left < 0:
            return f"Requests in flight take up the {memory.limit} bytes of memory that they share; try again shortly."
        if self.has_key and memory.held_by[self.owner] + size > _SHARE * left:
            return "This key's requests take up its share of the memory for requests in flight; try again shortly."
        return None

    def hold(self, size: int) -> None:
        """Count `size` bytes of memory until the request ends. Raises EngineOverloaded where there is no room.

        Raises RuntimeError once the request has ended: what is counted then would never be given back.
        """
        if self._released:
            raise RuntimeError("memory was counted for a request that has ended")
        if self._memory is not None:
            self.check_room(size)
            self._memory.take(self.owner, size)
            self._held += size

    @contextmanager
    def holding(self, size: int = 0) -> Iterator[Callable[[int], None]]:
        """Count `size` bytes, and what the yielded function is told of, while the block runs. Raises as `hold` does."""
        held = 0

        def hold(more: int) -> None:
            nonlocal held
            self.hold(more)
            held += more

        hold(size)
        try:
            yield hold
        finally:
            if self._memory is not None and not self._released:
                self._memory.give(self.owner, held)
                self._held -= held

    @contextmanager
    def part(self) -> Iterator["Caller"]:
        """The caller of a part of the request's work: what it holds is given back when the block ends."""
        part = Caller(self.owner, images=self._images, memory=self._memory, pace=self.pace)
        try:
            yield part
        finally:
            part.release()

    def keep(self, size: int) -> Callable[[], None]:
        """Count `size` bytes for work that outlives the request, until the returned function is called.

        Raises EngineOverloaded where such work would hold more than half of the memory for requests in flight.
        """
        memory = self._memory
        if memory is None:
            return lambda: None
        left = memory.limit // 2 - memory.kept_by.total() - size
        if left < 0 or (self.has_key and memory.kept_by[self.owner] + size > _SHARE * left):
            whose = "A key's unfinished jobs" if left >= 0 else "Unfinished jobs"
            message = f"{whose} may hold no more of the {memory.limit} bytes; wait until one has finished."
            raise EngineOverloaded(message, retry_after=5)
        if size > self._held:
            self.hold(size - self._held)
        self._held -= size
        memory.kept_by[self.owner] += size

        def release() -> None:
            memory.kept_by[self.owner] -= size
            memory.give(self.owner, size)

        return release

    def release(self) -> None:
        """Give back all that the request holds; it has ended."""
        if self._memory is not None and not self._released and self._held:
            self._memory.give(self.owner, self._held)
        self._released = True

    def cache_digest(self, digest: str) -> str:
        """The key under which this owner's caches hold the image with this digest.

        With API keys, owners share no cache entries: otherwise the time of an answer would reveal whether somebody
        else has sent the same image.
        """
        return hashlib.sha256(f"{self.owner} {digest}".encode()).hexdigest() if self.has_key else digest


class Callers:
    """Every owner's use of the server, from which the callers of requests are made."""

    def __init__(
        self,
        limits: CallerLimits | None = None,
        memory: InFlight | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits or CallerLimits()
        self._memory = memory
        self._clock = clock
        self._used: dict[str, _Use] = {}
        self._running = 0
        self._latest: _Use | None = None
        self._ended = self._ended_before = -math.inf
        """When a request of the latest owner whose requests end has ended, and one of any other."""

    @contextmanager
    def request(self, owner: str) -> Iterator[Caller]:
        """The caller of one request, for the time that it takes. Raises RateLimited."""
        use = self._used.get(owner)
        if use is None:
            use = self._used[owner] = _Use(self._limits, self._clock)
            use.pace = Pace(self._clock, functools.partial(self._is_alone, use))
        use.begin()
        self._running += 1
        caller = Caller(owner, images=use.images, memory=self._memory, pace=use.pace)
        try:
            yield caller
        finally:
            caller.release()
            use.running -= 1
            self._running -= 1
            if self._latest is not use:
                self._latest, self._ended_before = use, self._ended
            self._ended = self._clock()

    def _is_alone(self, use: "_Use") -> bool:
        """Whether nobody else asks, or has just been answered."""
        ended = self._ended_before if self._latest is use else self._ended
        return self._running == use.running and self._clock() - ended > PRESENT


class _Use:
    """What one owner has used of its limits."""

    def __init__(self, limits: CallerLimits, clock: Callable[[], float]) -> None:
        self._concurrent = limits.concurrent_requests
        self._requests = _Bucket(limits.requests_per_minute, clock) if limits.requests_per_minute else None
        self.images = _Bucket(limits.images_per_minute, clock) if limits.images_per_minute else None
        self.pace = Pace(clock)
        self.running = 0

    def begin(self) -> None:
        if self._concurrent is not None and self.running >= self._concurrent:
            message = f"This key may have {self._concurrent} requests at once; wait until one has ended."
            raise RateLimited(message, retry_after=1)
        if self._requests is not None:
            self._requests.take("requests")
        self.running += 1


class _Bucket:
    """A token bucket: holds one minute's worth, and refills evenly."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._left = float(per_minute)
        self._seen = clock()

    def take(self, what: str) -> None:
        now = self._clock()
        self._left = min(self._per_minute, self._left + (now - self._seen) * self._per_minute / 60)
        self._seen = now
        if self._left < 1:
            wait = (1 - self._left) * 60 / self._per_minute
            message = f"This key may send {self._per_minute} {what} per minute; try again in {math.ceil(wait)} s."
            raise RateLimited(message, retry_after=wait)
        self._left -= 1
