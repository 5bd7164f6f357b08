"""Embeddings that users upload ahead of a job: in memory only, per owner, for a while."""

import asyncio
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor

from covervlm.server.clip.tensors import read_embeddings
from covervlm.server.core.errors import NotFound, QuotaExceeded
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
    """Uploaded embeddings by id.

    max_bytes: what one owner's uploads may take. lifetime: seconds until an upload is forgotten. dimensions: of the
    embeddings that it takes.
    """

    def __init__(self, max_bytes: int, dimensions: int, *, lifetime: float = 3600) -> None:
        self._max_bytes = max_bytes
        self.dimensions = dimensions
        self._lifetime = lifetime
        self._uploads: OrderedDict[str, _Upload] = OrderedDict()
        self._lock = threading.Lock()

    async def read(self, owner: str, data: bytes) -> tuple[str, Tensor]:
        """Keep the embeddings in a file: an id, and the rows as kept. Raises BadTensors or QuotaExceeded."""
        rows = await asyncio.to_thread(read_embeddings, data, self.dimensions)
        return self._add(owner, rows), rows

    def _add(self, owner: str, rows: Tensor) -> str:
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
