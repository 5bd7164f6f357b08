"""Online classifiers (OnZeta): every image is labelled and learned from at once, exactly once."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from covervlm.clients.calls import Call, given
from covervlm.clients.clip_answers import Classification, Session
from covervlm.clients.images import Images, image_part, sources
from covervlm.clients.methods import AsyncPart, Part, asynchronous, blocking

_PATH = "/v1/zero_shot/sessions"


def create(
    classes: Sequence[str],
    horizon: int,
    *,
    templates: Sequence[str] | None = None,
    parameters: Mapping[str, Any] | None = None,
    model: str | None = None,
) -> Call[Session]:
    """Begin a stream. horizon: how many images are expected; parameters: OnZeta's, e.g. {"beta": 0.5}."""
    listed = None if templates is None else list(templates)
    body = {"classes": list(classes), "horizon": horizon, **given(templates=listed, parameters=parameters, model=model)}
    return Call("POST", _PATH, Session.read, body, repeatable=False)


def observe(
    session: str | Session,
    images: Images,
    *,
    top: int = 5,
    idempotency_key: str | None = None,
    timeout: float | None = None,
) -> Call[list[Classification]]:
    """Label images one after another, learning from each.

    The call carries a key of its own, so that repeats after lost connections teach nothing twice. To repeat a call
    that failed for good, give the same `idempotency_key` to both.
    """
    body = {"images": [image_part(image) for image in sources(images)], "top": top}
    key = {"Idempotency-Key": idempotency_key or uuid4().hex}
    return Call("POST", f"{_place(session)}/observe", Classification.read_list, body, headers=key, timeout=timeout)


def get(session: str | Session) -> Call[Session]:
    """The session as it stands now."""
    return Call("GET", _place(session), Session.read)


def list_all() -> Call[list[Session]]:
    """All sessions of this API key."""
    return Call("GET", _PATH, Session.read_list)


def snapshot(session: str | Session) -> Call[bytes]:
    """The session's state as the bytes of a safetensors file; the server saves it too."""
    return Call("GET", f"{_place(session)}/snapshot", bytes, binary=True)


def restore(session: str | Session, file: bytes | str | os.PathLike[str]) -> Call[Session]:
    """Put the session into the state of a snapshot over the same classes, from its bytes or the path of a file."""
    content = file if isinstance(file, bytes) else Path(file).read_bytes()
    return Call("PUT", f"{_place(session)}/snapshot", Session.read, content=content)


def delete(session: str | Session) -> Call[None]:
    """End a session and forget what it learned."""
    return Call("DELETE", _place(session), lambda body: None)


class Sessions(Part):
    """client.sessions: online classifiers."""

    create = blocking(create)
    observe = blocking(observe)
    get = blocking(get)
    list = blocking(list_all)
    snapshot = blocking(snapshot)
    restore = blocking(restore)
    delete = blocking(delete)


class AsyncSessions(AsyncPart):
    """The same for asyncio."""

    create = asynchronous(create)
    observe = asynchronous(observe)
    get = asynchronous(get)
    list = asynchronous(list_all)
    snapshot = asynchronous(snapshot)
    restore = asynchronous(restore)
    delete = asynchronous(delete)


def _place(session: str | Session) -> str:
    return f"{_PATH}/{quote(session if isinstance(session, str) else session.id, safe='')}"
