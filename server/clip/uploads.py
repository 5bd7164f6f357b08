"""Embeddings that users upload ahead of a job: in memory only, per owner, for a while."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor

from covervlm.server.resources import NotFound, QuotaExceeded
from covervlm.server.store import new_id


@dataclass(frozen=True, eq=False)
class _Upload:
    owner: str
    rows: Tensor
    expires: float

    @property
    def nbytes(self) -> int:
        return self.rows.numel() * self.rows.element_size()


class Uploads:
    """max_bytes bounds what one owner's uploads take; each is forgotten `lifetime` seconds after it came."""

    def __init__(self, max_bytes: int, *, lifetime: float = 3600) -> None:
        self._max_bytes = max_bytes
        self._lifetime = lifetime
        self._uploads: OrderedDict[str, _Upload] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, owner: str, rows: Tensor) -> str:
        """Raises QuotaExceeded."""
        upload = _Upload(owner, rows, time.monotonic() + self._lifetime)
        with self._lock:
            self._expire()
            held = sum(other.nbytes for other in self._uploads.values() if other.owner == owner)
            if held + upload.nbytes > self._max_bytes:
                raise QuotaExceeded(f"Uploaded embeddings take more than {self._max_bytes} bytes; delete some first.")
            name = new_id("emb")
            self._uploads[name] = upload
            return name

    def get(self, owner: str, name: str) -> Tensor:
        """Raises NotFound."""
        with self._lock:
            self._expire()
            upload = self._uploads.get(name)
        if upload is None or upload.owner != owner:
            raise NotFound("upload", name)
        return upload.rows

    def remove(self, owner: str, name: str) -> None:
        """Raises NotFound."""
        self.get(owner, name)
        with self._lock:
            self._uploads.pop(name, None)

    def _expire(self) -> None:
        now = time.monotonic()
        for name in [name for name, upload in self._uploads.items() if upload.expires < now]:
            del self._uploads[name]
