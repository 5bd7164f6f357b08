"""Streams of images: opened over class names, and answered with labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image

from covervlm.server.clip.classifiers import ranked
from covervlm.server.clip.encoder.batched import BatchedEncoder
from covervlm.server.clip.methods.contracts import Prediction
from covervlm.server.clip.quotas import Quotas
from covervlm.server.clip.sessions import Sessions
from covervlm.server.core.caller import Caller
from covervlm.server.core.errors import Conflict
from covervlm.server.store import Store


class Streams:
    """Called on the event loop. `model` is the encoder's public name."""

    def __init__(
        self, store: Store, sessions: Sessions, batched: BatchedEncoder, quotas: Quotas, *, model: str
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._batched = batched
        self._quotas = quotas
        self._model = model

    async def open(
        self,
        owner: str,
        *,
        classes: Sequence[str],
        templates: Sequence[str],
        horizon: int,
        parameters: Mapping[str, float],
        method: str = "onzeta",
    ) -> dict[str, Any]:
        """A new stream. Raises InvalidRequest for names that make no classes, and QuotaExceeded."""
        await self._store.soon(self._quotas.check_stream, self._store, owner)
        proxies = await self._batched.class_proxies(owner, classes, templates)
        about = {"classes": list(classes), "templates": list(templates), "horizon": horizon}
        about |= {"parameters": dict(parameters), "model": self._model}
        about |= {"fingerprint": self._batched.encoder.fingerprint}
        return await self._sessions.create(owner, about, proxies, method=method, admit=self._quotas.admit_stream)

    async def observe(
        self, caller: Caller, session: str, images: Sequence[Image], *, top: int, key: str | None, digest: str
    ) -> Mapping[str, Any]:
        """Label images in order and learn from them, once per key."""
        owner = caller.owner
        about = await self._sessions.describe(owner, session)
        if about["fingerprint"] != self._batched.encoder.fingerprint:
            raise Conflict(f"The stream '{session}' belongs to another model than the one served.", code="other_model")
        if key is not None and (known := await self._sessions.recall(owner, session, key, digest)) is not None:
            return known
        names = about["classes"]

        def render(predictions: Sequence[Prediction]) -> dict[str, Any]:
            best = ranked(torch.stack([one.combined for one in predictions]), names, top)
            data = [{"index": one.index, "top": found} for one, found in zip(predictions, best, strict=True)]
            return {"data": data, "observed": predictions[-1].index + 1}

        features = torch.stack(await self._batched.images(images, caller=caller))
        return await self._sessions.observe(owner, session, features, render, key=key, digest=digest)
