"""What all named things of an owner have in common: versions that never change, kept, listed, found and deleted."""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

from covervlm.server.clip.encoder.batched import BatchedEncoder
from covervlm.server.clip.quotas import Quotas
from covervlm.server.clip.uploads import Uploads
from covervlm.server.core.errors import NotFound
from covervlm.server.jobs.runner import JobRunner
from covervlm.server.store import Store
from covervlm.server.store.records import Artifact


class Named:
    """Called on the event loop, except `keep`. `kind`: what they are, as the store and error messages call them.

    They belong to the model they were made with; `model` is its public name.
    """

    kind: ClassVar[str]

    def __init__(
        self, store: Store, jobs: JobRunner, batched: BatchedEncoder, uploads: Uploads, quotas: Quotas, *, model: str
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._batched = batched
        self._encoder = batched.encoder
        self._uploads = uploads
        self._quotas = quotas
        self._model = model

    async def check_room(self, owner: str) -> None:
        """Raises QuotaExceeded where one more, or one more version, is too many; `keep` checks again."""
        await self._store.soon(self._quotas.check_named, self._store, owner, self.kind)

    def keep(self, owner: str, name: str, card: Mapping[str, Any], data: bytes, **job: Any) -> Artifact:
        """In a thread: the next version of a name. Raises QuotaExceeded. job: `job` and `progress`, as the store's."""
        method = card.get("method")
        told = method if isinstance(method, str) else None
        admit = functools.partial(self._quotas.admit_named, self.kind, size=len(data))
        return self._store.add(owner, self.kind, card, data, name=name, method=told, admit=admit, **job)

    async def add(self, owner: str, name: str, data: bytes) -> Artifact:
        """Keep an uploaded file as the next version of a name. Raises BadTensors or QuotaExceeded."""

        def keep() -> Artifact:
            card, file = self._checked(data)
            self._quotas.check_named(self._store, owner, self.kind, len(data))
            return self.keep(owner, name, card, file)

        return await self._store.soon(keep)

    def _checked(self, data: bytes) -> tuple[Mapping[str, Any], bytes]:
        """In a thread: what an uploaded file is, and the file to keep. Raises BadTensors."""
        raise NotImplementedError

    async def all(self, owner: str) -> list[Artifact]:
        """Oldest first."""
        return await self._store.soon(self._store.artifacts, owner, self.kind)

    async def get(self, owner: str, name: str) -> Artifact:
        """By `name`, `name@version` or id. Raises NotFound, as everything here does."""
        stored = await self._store.soon(self._store.find, owner, self.kind, name)
        if stored is None:
            raise NotFound(self.kind, name)
        return stored

    async def file(self, owner: str, name: str) -> bytes:
        """It as a safetensors file."""
        return await self._store.soon(self._store.read, await self.get(owner, name))

    async def delete(self, owner: str, name: str) -> None:
        if not await self._store.soon(self._store.delete, owner, self.kind, name):
            raise NotFound(self.kind, name)
