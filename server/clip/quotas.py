"""What one owner may keep on the server."""

from dataclasses import dataclass

from covervlm.server.core.errors import QuotaExceeded
from covervlm.server.store import Store


@dataclass(frozen=True)
class Quotas:
    """Limits for each owner: versions of classifiers, as many of projections, streams, and unfinished jobs.

    `bytes` is for all that is kept together, `upload_bytes` for memory.
    """

    classifiers: int = 100
    streams: int = 100
    unfinished_jobs: int = 8
    bytes: int = 2 * 1024**3
    upload_bytes: int = 1024**3

    def check_named(self, store: Store, owner: str, kind: str, size: int = 0) -> None:
        """Raises QuotaExceeded where one more classifier or projection, or version of one, is too many.

        `admit_named` checks again in the transaction that stores it.
        """
        self.admit_named(kind, *store.usage(owner, kind), size=size)

    def check_stream(self, store: Store, owner: str) -> None:
        """Raises QuotaExceeded where one more stream is too many."""
        self.admit_stream(*store.usage(owner, "stream"))

    def admit_named(self, kind: str, count: int, held: int, *, size: int = 0) -> None:
        """Raises QuotaExceeded where the owner has `count` of a kind and `held` bytes, and may have no more."""
        self._admit(kind, self.classifiers, count, held, size)

    def admit_stream(self, count: int, held: int, *, size: int = 0) -> None:
        """The same of a session."""
        self._admit("stream", self.streams, count, held, size)

    def _admit(self, kind: str, most: int, count: int, held: int, size: int) -> None:
        if count >= most:
            raise QuotaExceeded(f"There are {most} {kind}s, the most allowed; delete one first.")
        if held + size > self.bytes:
            raise QuotaExceeded(f"All that is kept takes {self.bytes} bytes, the most allowed; delete some.")
