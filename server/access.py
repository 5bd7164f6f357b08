"""Who may call the server and how often: API keys, known by their hashes only, and limits for each of them."""

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from covervlm.server.engines.base import EngineError
from covervlm.server.store.records import ANONYMOUS

_HASH = re.compile(r"sha256:[0-9a-f]{64}")


class RateLimited(EngineError):
    """The caller's own limit is reached; worth another try after `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def hashed(key: str) -> str:
    """sha256:HEX of a key that somebody sent, whatever its form: a hash alone opens nothing."""
    return f"sha256:{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()}"


def configured(key: str) -> str:
    """sha256:HEX of a key that the operator set; there, what has this form already is a hash."""
    return key if _HASH.fullmatch(key) else hashed(key)


def read_key_file(path: Path) -> list[str]:
    """Hashes from a file with one sha256:HEX a line, anything after it and lines that start with # being comments.

    Raises OSError, or ValueError for a line of another form.
    """
    hashes = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        entry = line.split(maxsplit=1)[:1]
        if not entry or entry[0].startswith("#"):
            continue
        if not _HASH.fullmatch(entry[0]):
            raise ValueError(f"line {number} does not start with sha256: and 64 hexadecimal digits")
        hashes.append(entry[0])
    return hashes


class Keys:
    """The accepted keys. A key's owner is what the server files its jobs, sessions and cached images under."""

    def __init__(self, hashes: Iterable[str]) -> None:
        self._owners = {value: hashlib.sha256(f"owner {value}".encode()).hexdigest()[:32] for value in hashes}

    def __bool__(self) -> bool:
        return bool(self._owners)

    def owner(self, key: str) -> str | None:
        """The owner of a key, None for one that is not accepted; takes as long for each."""
        given = hashed(key)
        found = None
        for value, owner in self._owners.items():
            if hmac.compare_digest(value, given):
                found = owner
        return found


@dataclass(frozen=True)
class CallerLimits:
    """What one caller may do; None does not limit."""

    requests_per_minute: int | None = None
    concurrent_requests: int | None = None
    images_per_minute: int | None = None


class _Bucket:
    """A minute's worth that drains as it is used and fills evenly."""

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
            raise RateLimited(f"This key may send {self._per_minute} {what} per minute.", retry_after=wait)
        self._left -= 1


class Caller:
    """One owner's use of the server against its limits; used on the event loop."""

    def __init__(self, limits: CallerLimits, clock: Callable[[], float]) -> None:
        self._concurrent = limits.concurrent_requests
        self._requests = _Bucket(limits.requests_per_minute, clock) if limits.requests_per_minute else None
        self._images = _Bucket(limits.images_per_minute, clock) if limits.images_per_minute else None
        self._running = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """The time that a request takes. Raises RateLimited."""
        if self._concurrent is not None and self._running >= self._concurrent:
            raise RateLimited(f"This key may have {self._concurrent} requests at once.", retry_after=1)
        if self._requests is not None:
            self._requests.take("requests")
        self._running += 1
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)
            self._running -= 1

    def image(self) -> None:
        if self._images is not None:
            self._images.take("images")


_current: ContextVar[Caller | None] = ContextVar("caller", default=None)


def current_caller() -> Caller | None:
    """Whose request is being answered."""
    return _current.get()


def charge_image() -> None:
    """Count an image or video against the caller of the request that is being answered. Raises RateLimited."""
    caller = _current.get()
    if caller is not None:
        caller.image()


class Callers:
    """Every owner with its use of the server."""

    def __init__(self, limits: CallerLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._callers: dict[str, Caller] = {}

    def __getitem__(self, owner: str) -> Caller:
        return self._callers.setdefault(owner, Caller(self._limits, self._clock))


def cache_digest(owner: str, digest: str) -> str:
    """An image's digest as this owner's caches know it.

    With keys, each owner has a cache of its own: else the time of an answer would tell whether somebody else has sent
    the same image.
    """
    return digest if owner == ANONYMOUS else hashlib.sha256(f"{owner} {digest}".encode()).hexdigest()
