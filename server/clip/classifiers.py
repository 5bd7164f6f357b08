"""Owners' named classifiers: learned in a job (InMaP), uploaded, handed out, deleted."""

import asyncio
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from covervlm.server.clip.batched_encoder import BatchedEncoder
from covervlm.server.clip.classifier_file import ClassifierFile, read_classifier
from covervlm.server.clip.inmap import fit_vision_proxies
from covervlm.server.clip.jobs import JobError, JobRunner, Reporter, Work, encoding
from covervlm.server.clip.quotas import Quotas, name_taken
from covervlm.server.clip.tensors import BadTensors, read_embeddings
from covervlm.server.clip.uploads import Uploads
from covervlm.server.engines.base import InvalidRequest
from covervlm.server.resources import Conflict, NotFound
from covervlm.server.store import NameTaken, Store
from covervlm.server.store.records import Classifier, Job

MOST_SCORES = 2**29
"""Images times classes of one fit, which takes four bytes for each: 2 GiB."""


class Classifiers:
    """Called on the event loop. A classifier belongs to the model it was made with; `model` is its public name."""

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

    async def fit(
        self,
        owner: str,
        name: str,
        *,
        classes: Sequence[str],
        templates: Sequence[str],
        images: Sequence[Image],
        embeddings: bytes | None,
        uploads: Sequence[str],
        parameters: Mapping[str, Any],
    ) -> Job:
        """Start a job that learns a classifier from images or embeddings. Nothing of them is written to disk."""
        self._quotas.check_classifier(self._store, owner, name)
        parts = [self._uploads.get(owner, upload) for upload in uploads]
        if embeddings is not None:
            parts.append(await asyncio.to_thread(read_embeddings, embeddings, self._encoder.dimensions))
        if (len(images) + sum(map(len, parts))) * len(classes) > MOST_SCORES:
            message = f"Images times classes may be {MOST_SCORES} at most; learn from fewer images."
            raise InvalidRequest(message, param="images", code="invalid_value")
        text = await self._batched.class_proxies(owner, classes, templates)
        about = {"classes": list(classes), "templates": list(templates), "parameters": dict(parameters)}

        def work(job: str) -> Work:
            return functools.partial(self._fit, owner, name, job, about, text, list(images), parts)

        return await self._jobs.submit(owner, "classifier", work)

    def _fit(
        self,
        owner: str,
        name: str,
        job: str,
        about: Mapping[str, Any],
        text: Tensor,
        images: list[Image],
        parts: list[Tensor],
        report: Reporter,
    ) -> None:
        """In the jobs' thread."""
        if images:
            parts = [*parts, self._batched.in_batches(self._encoder.embed_pixels, images, encoding(report, images))]
        features = torch.cat(parts)
        before = 0.5 if images else 0.0
        total = int(about["parameters"]["iterations"])
        last = {"iteration": 0, "gradient_norm": 0.0}

        def progress(iteration: int, norm: float) -> None:
            last.update(iteration=iteration, gradient_norm=norm)
            share = before + (1 - before) * 0.99 * iteration / total
            report(share, phase="fitting", iteration=iteration, iterations=total, gradient_norm=norm)

        device = self._encoder.device
        fitted = fit_vision_proxies(features.to(device), text.to(device), progress=progress, **about["parameters"])
        report(1.0, phase="done", iterations=total, **last)
        file = ClassifierFile(
            classes=list(about["classes"]),
            proxies=fitted.cpu(),
            temperature=about["parameters"]["tau_vision"],
            fingerprint=self._encoder.fingerprint,
            about={**about, "method": "inmap", "images": len(features), "model": self._model, **last},
        )
        try:
            self._store.add_classifier(owner, name, file.description(), file.pack(), job=job, progress=report.progress)
        except NameTaken:
            raise JobError("name_taken", str(name_taken(name))) from None

    async def add(self, owner: str, name: str, data: bytes) -> Classifier:
        """Keep an uploaded classifier. Raises BadTensors, Conflict or QuotaExceeded."""
        file = await asyncio.to_thread(read_classifier, data)
        if file.fingerprint != self._encoder.fingerprint:
            raise BadTensors("The classifier was made with another model than the one served here.")
        if file.proxies.shape[0] != self._encoder.dimensions:
            raise BadTensors(f"The classifier has {file.proxies.shape[0]} dimensions, not {self._encoder.dimensions}.")
        self._quotas.check_classifier(self._store, owner, name, len(data))
        try:
            return await asyncio.to_thread(self._store.add_classifier, owner, name, file.description(), file.pack())
        except NameTaken:
            raise name_taken(name) from None

    def list(self, owner: str) -> list[Classifier]:
        """Oldest first."""
        return self._store.classifiers(owner)

    def get(self, owner: str, name: str) -> Classifier:
        """By name or id. Raises NotFound, as everything here does."""
        stored = self._store.classifier(owner, name)
        if stored is None:
            raise NotFound("classifier", name)
        return stored

    async def file(self, owner: str, name: str) -> bytes:
        """The classifier as a safetensors file."""
        return await asyncio.to_thread(self._store.read_blob, self.get(owner, name).blob)

    async def load(self, owner: str, name: str) -> ClassifierFile:
        """Raises Conflict for a classifier of another model."""
        file = await asyncio.to_thread(read_classifier, await self.file(owner, name))
        if file.fingerprint != self._encoder.fingerprint:
            message = f"The classifier '{name}' was made with another model than the one served now."
            raise Conflict(message, code="other_model", param="classifier")
        return file

    async def delete(self, owner: str, name: str) -> None:
        if not await asyncio.to_thread(self._store.delete_classifier, owner, name):
            raise NotFound("classifier", name)
