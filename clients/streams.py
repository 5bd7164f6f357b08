"""Online classifiers (OnZeta): each image is labelled on arrival, and learned from exactly once."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote
from uuid import uuid4

from covervlm.clients.calls import Call, given, listed
from covervlm.clients.classifiers import Classification
from covervlm.clients.images import Images, image_parts
from covervlm.clients.methods import Asyncio, Blocking, method
from covervlm.clients.records import Record

_PATH = "/v1/streams"


@dataclass(frozen=True)
class StreamGroup(Record):
    """A class as a stream has it now. size: its images, None where not counted. drift: from its text, 0 to 2."""

    label: str
    size: int | None
    drift: float


@dataclass(frozen=True)
class ImageStream(Record):
    """An online classifier.

    observed: images that it has learned from; snapshot_observed: how many of them survive a crash of the server.
    groups: one for each class, as `get` tells them; empty elsewhere.
    """

    id: str
    created: int
    model: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    horizon: int
    parameters: Mapping[str, float]
    observed: int
    snapshot_observed: int
    past_horizon: bool
    groups: tuple[StreamGroup, ...] = field(default=(), repr=False)

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        return super().read({**body, "groups": tuple(map(StreamGroup.read, body.get("groups", ())))})


def create(
    classes: Sequence[str],
    horizon: int,
    *,
    method: str | None = None,
    templates: Sequence[str] | None = None,
    parameters: Mapping[str, Any] | None = None,
    model: str | None = None,
) -> Call[ImageStream]:
    """Start a stream. horizon: how many images are expected. method: `onzeta` (default) labels, `coke` groups.

    parameters: the method's, e.g. {"beta": 0.5}.
    """
    options = given(method=method, templates=listed(templates), parameters=parameters, model=model)
    body = {"classes": list(classes), "horizon": horizon, **options}
    return Call("POST", _PATH, ImageStream.read, body, repeatable=False)


def observe(
    stream: str | ImageStream,
    images: Images,
    *,
    top: int = 5,
    idempotency_key: str | None = None,
    timeout: float | None = None,
) -> Call[list[Classification]]:
    """Label images one after another, learning from each.

    Each call carries an idempotency key, so that nothing is learned twice where the client repeats it after a lost
    connection. To repeat a call yourself, give the same `idempotency_key` to both.
    """
    body = {"images": image_parts(images), "top": top}
    key = {"Idempotency-Key": idempotency_key or uuid4().hex}
    return Call("POST", f"{_place(stream)}/observe", Classification.read_list, body, headers=key, timeout=timeout)


def get(stream: str | ImageStream) -> Call[ImageStream]:
    """The stream as it stands now."""
    return Call("GET", _place(stream), ImageStream.read)


def list_all() -> Call[list[ImageStream]]:
    """All streams of this API key."""
    return Call("GET", _PATH, ImageStream.read_list)


def snapshot(stream: str | ImageStream) -> Call[bytes]:
    """The stream's state as the bytes of a safetensors file; the server saves it too."""
    return Call("GET", f"{_place(stream)}/snapshot", bytes, binary=True)


def restore(stream: str | ImageStream, file: bytes | str | os.PathLike[str]) -> Call[ImageStream]:
    """Set the stream to the state of a snapshot with the same classes, given as bytes or the path of a file."""
    content = file if isinstance(file, bytes) else Path(file).read_bytes()
    return Call("PUT", f"{_place(stream)}/snapshot", ImageStream.read, content=content)


def delete(stream: str | ImageStream) -> Call[None]:
    """Delete a stream with all it has learned."""
    return Call("DELETE", _place(stream), lambda body: None)


class _Methods:
    create = method(create)
    observe = method(observe)
    get = method(get)
    list = method(list_all)
    snapshot = method(snapshot)
    restore = method(restore)
    delete = method(delete)


class Streams(_Methods, Blocking):
    """client.streams: online classifiers."""


class AsyncStreams(_Methods, Asyncio):
    """The same for asyncio."""


def _place(stream: str | ImageStream) -> str:
    return f"{_PATH}/{quote(stream if isinstance(stream, str) else stream.id, safe='')}"
