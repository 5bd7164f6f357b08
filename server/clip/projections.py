"""Owners' named spaces for search: learned in a job, each an embedding model of its own."""

import asyncio
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from covervlm.server.clip.labels import Labels
from covervlm.server.clip.methods.contracts import Diverged, Examples, Fit, Projection
from covervlm.server.clip.methods.registry import method_class
from covervlm.server.clip.named import Named
from covervlm.server.clip.numbered_labels import Numbered, numbered
from covervlm.server.clip.projection_file import read_projection, write_projection
from covervlm.server.clip.retrieval import judged
from covervlm.server.clip.sources import Sources, gathered
from covervlm.server.clip.tensors import BadTensors
from covervlm.server.core.caller import Caller
from covervlm.server.core.errors import Conflict, Damaged, InvalidRequest
from covervlm.server.jobs.runner import JobError, Reporter, Work
from covervlm.server.store.records import Artifact, JobRecord

log = logging.getLogger(__name__)


class Projections(Named):
    """Called on the event loop."""

    kind = "projection"

    async def fit(
        self,
        caller: Caller,
        name: str,
        *,
        images: Sequence[Image] = (),
        rows: np.ndarray | None = None,
        embeddings: bytes | None = None,
        uploads: Sequence[str] = (),
        labels: Labels | None = None,
        label_map: Mapping[str, str] | None = None,
        parameters: Mapping[str, Any],
        method: str = "soft_triple",
        seed: int = 0,
    ) -> JobRecord:
        """Start a job that learns a projection from images or embeddings. Nothing of them is written to disk.

        Examples come in the order images, rows (n, d), uploads, embeddings; a method that needs second views makes them
        of images, and takes embeddings (n, 2, d). It is judged by labels of which it has seen none; with `label_map` it
        learns from what they are mapped to alone.
        """
        owner = caller.owner
        await self.check_room(owner)
        learner: Fit[Projection] = method_class("project", method)(**parameters)
        wanted, most = getattr(learner, "dimensions", 0), self._encoder.dimensions
        if wanted > most:
            message = f"Embeddings of {most} dimensions cannot be projected to {wanted}; ask for at most {most}."
            raise InvalidRequest(message, param="parameters.dimensions", code="invalid_value")
        sources = await gathered(
            owner,
            self._uploads,
            images=images,
            rows=rows,
            uploads=uploads,
            embeddings=embeddings,
            views=2 if "second_views" in learner.needs else 1,
        )
        taught = None
        if labels is not None:
            labels.check_count(len(sources))
            taught = await asyncio.to_thread(numbered, labels, classes=None, label_map=label_map or {})
        about = {"model": self._model, "method": method, "parameters": asdict(learner), "images": len(sources)}
        about |= {"label_map": dict(label_map or {}), "seed": seed, "fingerprint": self._encoder.fingerprint}

        def work(job: str) -> Work:
            return functools.partial(self._fit, owner, name, job, learner, sources, taught, about)

        return await self._jobs.submit(caller, self.kind, work, method=method, size=sources.nbytes)

    def _fit(
        self,
        owner: str,
        name: str,
        job: str,
        learner: Fit[Projection],
        sources: Sources,
        taught: Numbered | None,
        about: Mapping[str, Any],
        report: Reporter,
    ) -> None:
        """In the jobs' thread."""
        device, before, seed = self._encoder.device, sources.embedded, about["seed"]
        if "second_views" in learner.needs:
            images, features, others = sources.views(self._batched, report, seed=seed).to(device).unbind(dim=1)
            if torch.equal(features, others):
                raise JobError("no_second_views", "All views of an image are alike; the images seem to be blank.")
        else:
            images = features = sources.features(self._batched, report).to(device)
            others = None
        labels = None if taught is None else taught.labels.to(device)
        finest = None if taught is None else taught.labels if taught.groups is None else taught.groups

        def progress(share: float, /, **figures: float) -> None:
            report(before + (1 - before) * 0.99 * share, phase="fitting", **figures)

        examples = Examples(features, labels=labels, second_views=others)
        try:
            projection, told = judged(learner, examples, images, finest, seed=seed, progress=progress)
        except Diverged as error:
            raise JobError("diverged", f"{str(error).capitalize()}.") from None
        report(1.0, phase="done")
        card = {**about, "dimensions": len(projection.matrix), "report": told}
        self.keep(owner, name, card, write_projection(projection, card), job=job, progress=report.progress)

    def _checked(self, data: bytes) -> tuple[Mapping[str, Any], bytes]:
        projection, about = read_projection(data)
        rows, columns = projection.matrix.shape
        if about.get("fingerprint") != self._encoder.fingerprint or columns != self._encoder.dimensions:
            raise BadTensors("The projection was made with another model than the one served.")
        if rows > columns:
            raise BadTensors(f"The projection makes {rows} dimensions of {columns}; it may make {columns} at most.")
        card = {**about, "dimensions": rows}
        return card, write_projection(projection, card)

    async def load(self, owner: str, name: str) -> tuple[Artifact, Projection]:
        """What the store knows of it, and itself. Raises NotFound, Conflict for one of another model, and Damaged."""
        stored = await self.get(owner, name)
        if stored.card["fingerprint"] != self._encoder.fingerprint:
            message = f"The projection '{name}' was made with another model than the one served now."
            raise Conflict(message, code="other_model", param="model")
        data = await self._store.soon(self._store.read, stored)
        try:
            return stored, (await asyncio.to_thread(read_projection, data))[0]
        except BadTensors as error:
            log.error("the stored file of a projection cannot be used: %s", error)
            raise Damaged(self.kind, name) from None
