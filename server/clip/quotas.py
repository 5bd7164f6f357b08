"""What one owner may keep on the server."""

from dataclasses import dataclass

from covervlm.server.core.errors import QuotaExceeded
from covervlm.server.store import Store


@dataclass(frozen=True)
class Quotas:
    """Limits for each owner; `bytes` is for classifiers and streams together, `upload_bytes` for memory."""

    classifiers: int = 100
    streams: int = 100
    unfinished_jobs: int = 8
    bytes: int = 2 * 1024**3
    upload_bytes: int = 1024**3

    def check_classifier(self, store: Store, owner: str, size: int = 0) -> None:
        """Raises QuotaExceeded where one more classifier, or version of one, is too many.

        `admit_classifier` checks again in the transaction that stores it.
        """
        self.admit_classifier(*store.usage(owner, "classifier"), size=size)

    def check_stream(self, store: Store, owner: str) -> None:
        """Raises QuotaExceeded where one more stream is too many."""
        self.admit_stream(*store.usage(owner, "stream"))

    def admit_classifier(self, count: int, held: int, *, size: int = 0) -> None:
        """Raises QuotaExceeded where the owner has `count` classifiers and `held` bytes, and may have no more."""
        self._admit("classifier", self.classifiers, count, held, size)

    def admit_stream(self, count: int, held: int, *, size: int = 0) -> None:
        """The same of a session."""
        self._admit("stream", self.streams, count, held, size)

    def _admit(self, kind: str, most: int, count: int, held: int, size: int) -> None:
        if count >= most:
            raise QuotaExceeded(f"There are {most} {kind}s, the most allowed; delete one first.")
        if held + size > self.bytes:
            raise QuotaExceeded(f"Classifiers and streams take {self.bytes} bytes, the most allowed; delete some.")
