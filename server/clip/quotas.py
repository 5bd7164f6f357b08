"""What one owner may keep on the server."""

from dataclasses import dataclass

from covervlm.server.resources import Conflict, QuotaExceeded
from covervlm.server.store import Store


@dataclass(frozen=True)
class Quotas:
    """Limits for each owner; `bytes` is for classifiers and sessions together, `upload_bytes` for memory."""

    classifiers: int = 100
    sessions: int = 100
    unfinished_jobs: int = 8
    bytes: int = 2 * 1024**3
    upload_bytes: int = 1024**3

    def check_classifier(self, store: Store, owner: str, name: str, size: int = 0) -> None:
        """Raises Conflict where the name is taken, and QuotaExceeded where one more classifier is too many."""
        if store.classifier(owner, name) is not None:
            raise name_taken(name)
        if len(store.classifiers(owner)) >= self.classifiers:
            raise QuotaExceeded(f"There are {self.classifiers} classifiers, the most allowed; delete one first.")
        self._check_bytes(store, owner, size)

    def check_session(self, store: Store, owner: str) -> None:
        """Raises QuotaExceeded where one more session is too many."""
        if len(store.sessions(owner)) >= self.sessions:
            raise QuotaExceeded(f"There are {self.sessions} sessions, the most allowed; delete one first.")
        self._check_bytes(store, owner, 0)

    def _check_bytes(self, store: Store, owner: str, size: int) -> None:
        if store.usage(owner) + size > self.bytes:
            raise QuotaExceeded(f"Classifiers and sessions take {self.bytes} bytes, the most allowed; delete some.")


def name_taken(name: str) -> Conflict:
    message = f"There is a classifier '{name[:200]}' already; choose another name or delete it first."
    return Conflict(message, code="name_taken", param="name")
