"""The CLIP model and everything that is built on it, from start to stop."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from covervlm.server.clip.classifiers import Classifiers
from covervlm.server.clip.clusterings import Clusterings
from covervlm.server.clip.encoder.batched import BatchedEncoder
from covervlm.server.clip.encoder.encoder import ClipEncoder
from covervlm.server.clip.explanations import Explanations
from covervlm.server.clip.projections import Projections
from covervlm.server.clip.quotas import Quotas
from covervlm.server.clip.sessions import Sessions, SnapshotInterval
from covervlm.server.clip.streams import Streams
from covervlm.server.clip.uploads import Uploads
from covervlm.server.core.errors import EngineUnavailable, ResourceError
from covervlm.server.jobs.runner import JobRunner
from covervlm.server.store import Store
from covervlm.server.store.database import Database, StoreError
from covervlm.server.store.records import JOB_STATES, Artifact

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipStats:
    """A moment's gauges, for /metrics: jobs that the server knows of, by state, and open streams."""

    jobs: Mapping[str, int]
    streams: int = 0


class ClipService:
    """One dual encoder and what is built on it. Called on the event loop, but for `stats`.

    `name` is what clients call the model. The other attributes, all but the quotas, are there once it is ready.
    """

    encoder: ClipEncoder
    store: Store
    jobs: JobRunner
    uploads: Uploads
    batched: BatchedEncoder
    classifiers: Classifiers
    explanations: Explanations
    projections: Projections
    clusterings: Clusterings
    sessions: Sessions
    streams: Streams

    def __init__(
        self,
        load: Callable[[], ClipEncoder],
        data_folder: Path | None,
        *,
        name: str,
        quotas: Quotas | None = None,
        interval: SnapshotInterval | None = None,
    ) -> None:
        """`load` makes the encoder when the service starts; without a data folder nothing outlives the process."""
        self.name = name
        self.quotas = quotas or Quotas()
        self._load = load
        self._data_folder = data_folder
        self._interval = interval or SnapshotInterval()
        self._starting = asyncio.Lock()
        self._state: Literal["new", "ready", "stopped"] = "new"

    async def start(self) -> None:
        """Open the data folder and load the encoder, unless that is done. Raises StoreError, OSError or ValueError."""
        async with self._starting:
            if self._state != "new":
                return
            self.store = await asyncio.to_thread(lambda: Store(Database(self._data_folder)))
            try:
                self.encoder = await asyncio.to_thread(self._load)
            except BaseException:
                await asyncio.to_thread(self.store.close)
                raise
            store, quotas, model = self.store, self.quotas, self.name
            self.jobs = JobRunner(store, max_unfinished=quotas.unfinished_jobs)
            self.batched = BatchedEncoder(self.encoder)
            self.uploads = Uploads(quotas.upload_bytes, self.encoder.dimensions)
            self.classifiers = Classifiers(store, self.jobs, self.batched, self.uploads, quotas, model=model)
            self.explanations = Explanations(self.classifiers, self.batched)
            self.projections = Projections(store, self.jobs, self.batched, self.uploads, quotas, model=model)
            self.clusterings = Clusterings(self.jobs, self.batched)
            self.sessions = Sessions(store, self._interval)
            self.streams = Streams(store, self.sessions, self.batched, quotas, model=model)
            self._state = "ready"

    async def ready(self) -> None:
        """Returns once the service answers; the first call starts it. Raises EngineUnavailable where it cannot."""
        if self._state == "new":
            try:
                await self.start()
            except (StoreError, OSError, ValueError):
                log.exception("the CLIP service cannot start")
                raise EngineUnavailable("The embedding model cannot be loaded; the server's log says why.") from None
        if self._state == "stopped":
            raise EngineUnavailable("The server is shutting down; send the request to another replica.")

    async def stop(self) -> None:
        """Cancel jobs, save sessions, close the store."""
        async with self._starting:
            started, self._state = self._state == "ready", "stopped"
        if started:
            await self.jobs.stop()
            await self.sessions.stop()
            await asyncio.to_thread(self.store.close)
            self.batched.close()

    async def spaces(self, owner: str) -> list[Artifact]:
        """The owner's projections, oldest first: models that embed, too.

        None before the service starts, nor while the store cannot be read: whoever chats still wants to see the models.
        """
        try:
            return await self.projections.all(owner) if self._state == "ready" else []
        except ResourceError:
            return []

    @property
    def dimensions(self) -> int:
        return self.encoder.dimensions

    def check_image(self, width: int, height: int) -> None:
        """Raises InvalidRequest for an image of a size that would become too large on its way to the model."""
        self.encoder.cost(width, height)

    def stats(self) -> ClipStats:
        """Two counting queries, in a thread; zeros before the service starts and after it stops."""
        jobs, streams = self.store.counts() if self._state == "ready" else ({}, 0)
        return ClipStats(dict.fromkeys(JOB_STATES, 0) | jobs, streams)
