"""Memory that requests in flight may take together: their bodies as they arrive, and the images decoded out of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from covervlm.server.engines.base import EngineOverloaded


class InFlight:
    """Counts bytes until the requests that hold them end; used on the event loop."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """The time in which one request holds what is counted by `hold`."""
        share = _Share(self)
        token = _current.set(share)
        try:
            yield
        finally:
            _current.reset(token)
            self.bytes -= share.bytes

    def check(self, size: int) -> None:
        """Raises EngineOverloaded where there is no room for `size` more bytes."""
        if self.bytes + size > self.limit:
            message = f"Requests in flight hold the {self.limit} bytes that they may together; try again shortly."
            raise EngineOverloaded(message, retry_after=1)


class _Share:
    def __init__(self, whole: InFlight) -> None:
        self.whole = whole
        self.bytes = 0


_current: ContextVar[_Share | None] = ContextVar("share", default=None)


def hold(size: int) -> None:
    """Count `size` bytes against the request that is being answered. Raises EngineOverloaded."""
    share = _current.get()
    if share is not None:
        share.whole.check(size)
        share.whole.bytes += size
        share.bytes += size
