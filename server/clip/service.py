"""Everything the CLIP endpoints do, in plain values: routes bring checked images and names, and get lists and bytes."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor

from covervlm.server.clip.batched_encoder import BatchedEncoder
from covervlm.server.clip.classifiers import Classifiers
from covervlm.server.clip.clusterings import Clusterings
from covervlm.server.clip.encoder import ClipEncoder
from covervlm.server.clip.jobs import JobRunner
from covervlm.server.clip.onzeta import OnlinePrediction
from covervlm.server.clip.quotas import Quotas
from covervlm.server.clip.sessions import Sessions, SnapshotInterval
from covervlm.server.clip.tensors import read_embeddings
from covervlm.server.clip.uploads import Uploads
from covervlm.server.engines.base import EngineUnavailable
from covervlm.server.resources import Conflict
from covervlm.server.store import Store
from covervlm.server.store.database import Database, StoreError
from covervlm.server.store.records import JOB_STATES

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors as little-endian float32 bytes, one per input, and the tokens that the texts took."""

    vectors: list[bytes]
    dimensions: int
    tokens: int


@dataclass(frozen=True)
class ClipStats:
    """A moment's gauges, for /metrics: jobs that the server knows of, by state, and open OnZeta sessions."""

    jobs: Mapping[str, int]
    sessions: int = 0


class ClipService:
    """One dual encoder and what is built on it. Called on the event loop; the model's thread is the only one to use it.

    `name` is what clients call the model.
    """

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
        self.uploads = Uploads(self.quotas.upload_bytes)
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
            store = Store(await asyncio.to_thread(Database, self._data_folder))
            try:
                self.encoder = await asyncio.to_thread(self._load)
            except BaseException:
                store.close()
                raise
            self.store = store
            self.jobs = JobRunner(store, max_unfinished=self.quotas.unfinished_jobs)
            self.sessions = Sessions(store, self._interval)
            self.batched = BatchedEncoder(self.encoder)
            self.clusterings = Clusterings(self.jobs, self.batched)
            self.classifiers = Classifiers(store, self.jobs, self.batched, self.uploads, self.quotas, model=self.name)
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
            self.store.close()
            self.batched.close()

    @property
    def dimensions(self) -> int:
        return self.encoder.dimensions

    def stats(self) -> ClipStats:
        """Two counting queries; zeros before the service starts and after it stops."""
        jobs, sessions = self.store.counts() if self._state == "ready" else ({}, 0)
        return ClipStats(dict.fromkeys(JOB_STATES, 0) | jobs, sessions)

    # Embeddings and labels at once.

    async def embed(self, inputs: Sequence[str | Image]) -> Embeddings:
        """Texts and images, in order. Raises InvalidRequest for a text that is too long, naming its place."""
        texts = [(i, item) for i, item in enumerate(inputs) if isinstance(item, str)]
        images = [(i, item) for i, item in enumerate(inputs) if not isinstance(item, str)]
        (text_rows, tokens), image_rows = await asyncio.gather(
            self.batched.texts([text for _, text in texts], param=lambda k: f"input[{texts[k][0]}]"),
            self.batched.images([image for _, image in images]),
        )
        rows: dict[int, Tensor] = dict(zip([i for i, _ in texts], text_rows, strict=True))
        rows |= dict(zip([i for i, _ in images], image_rows, strict=True))
        vectors = [rows[i].numpy().astype("<f4").tobytes() for i in range(len(inputs))]
        return Embeddings(vectors, self.dimensions, tokens)

    async def classify(
        self,
        owner: str,
        images: Sequence[Image],
        *,
        classes: Sequence[str] | None,
        templates: Sequence[str],
        classifier: str | None,
        top: int,
    ) -> tuple[list[str], list[list[tuple[str, float]]]]:
        """The class names, and for each image its `top` classes with probabilities, best first.

        Probabilities are a softmax over the classes at the classifier's temperature, the model's own for plain text.
        """
        if classifier is not None:
            stored = await self.classifiers.load(owner, classifier)
            names, proxies, temperature = stored.classes, stored.proxies, stored.temperature
        else:
            names = list(classes or ())
            proxies, temperature = await self.batched.class_proxies(owner, names, templates), self.encoder.temperature
        features = torch.stack(await self.batched.images(images))

        def answer() -> list[list[tuple[str, float]]]:
            return [ranked(row, names, top) for row in torch.softmax(features @ proxies / temperature, dim=1)]

        return names, await asyncio.to_thread(answer)

    async def upload(self, owner: str, data: bytes) -> tuple[str, int]:
        """Keep embeddings in memory for the owner's next jobs: an id, and the number of images."""
        rows = await asyncio.to_thread(read_embeddings, data, self.dimensions)
        return self.uploads.add(owner, rows), len(rows)

    # Sessions.

    async def open_session(
        self,
        owner: str,
        *,
        classes: Sequence[str],
        templates: Sequence[str],
        horizon: int,
        parameters: Mapping[str, float],
    ) -> dict[str, Any]:
        """A new OnZeta stream."""
        self.quotas.check_session(self.store, owner)
        proxies = await self.batched.class_proxies(owner, classes, templates)
        about = {"classes": list(classes), "templates": list(templates), "horizon": horizon}
        about |= {"parameters": dict(parameters), "model": self.name, "fingerprint": self.encoder.fingerprint}
        return await self.sessions.create(owner, about, proxies)

    async def observe(
        self, owner: str, session: str, images: Sequence[Image], *, top: int, key: str | None, digest: str
    ) -> Mapping[str, Any]:
        """Label images in order and learn from them, once per key."""
        about = await self.sessions.describe(owner, session)
        if about["fingerprint"] != self.encoder.fingerprint:
            raise Conflict(f"The session '{session}' belongs to another model than the one served.", code="other_model")
        if key is not None and (known := await self.sessions.recall(owner, session, key, digest)) is not None:
            return known
        names = about["classes"]

        def render(predictions: Sequence[OnlinePrediction]) -> dict[str, Any]:
            data = []
            for prediction in predictions:
                best = ranked(prediction.combined, names, top)
                data.append({"index": prediction.index, "top": best})
            return {"data": data, "observed": predictions[-1].index + 1}

        features = torch.stack(await self.batched.images(images))
        return await self.sessions.observe(owner, session, features, render, key=key, digest=digest)


def ranked(probabilities: Tensor, names: Sequence[str], top: int) -> list[tuple[str, float]]:
    """The `top` most probable names with their probabilities, best first."""
    best = probabilities.topk(min(top, len(names)))
    return [(names[i], float(p)) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
