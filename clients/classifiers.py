"""Classifiers that the server learns from unlabelled images (InMaP) and keeps under a name."""

import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from covervlm.clients.calls import Call, given
from covervlm.clients.clip_answers import Classifier, Upload
from covervlm.clients.images import Images, image_part, sources
from covervlm.clients.jobs import Job
from covervlm.clients.matrices import Matrix, matrix_file
from covervlm.clients.methods import AsyncPart, Part, asynchronous, blocking

_PATH = "/v1/zero_shot/classifiers"
_UPLOADS = "/v1/zero_shot/embeddings"


def fit(
    name: str,
    classes: Sequence[str],
    images: Images = None,
    *,
    embeddings: Matrix | None = None,
    uploads: Sequence[str | Upload] = (),
    templates: Sequence[str] | None = None,
    parameters: Mapping[str, Any] | None = None,
    model: str | None = None,
    timeout: float | None = None,
) -> Call[Job[str]]:
    """Start a job that learns a classifier from unlabelled images, or from their embeddings by the same model.

    embeddings: an (n, d) array, what `embed_images` answered, or a .npy or .safetensors file or its path.
    uploads: of `upload_embeddings`. parameters: InMaP's, e.g. {"gamma": 0.5}. The job's result is the name.
    """
    body = {
        "name": name,
        "classes": list(classes),
        "images": [image_part(image) for image in sources(images)],
        "uploads": [upload if isinstance(upload, str) else upload.id for upload in uploads],
        **given(
            embeddings=None if embeddings is None else b64encode(matrix_file(embeddings)).decode(),
            templates=None if templates is None else list(templates),
            parameters=parameters,
            model=model,
        ),
    }
    return Call("POST", _PATH, Job[str].read, body, timeout=timeout, repeatable=False)


def get(name: str) -> Call[Classifier]:
    """What is known of a classifier."""
    return Call("GET", _place(name), Classifier.read)


def list_all() -> Call[list[Classifier]]:
    """All classifiers of this API key."""
    return Call("GET", _PATH, Classifier.read_list)


def delete(name: str) -> Call[None]:
    """Delete a classifier."""
    return Call("DELETE", _place(name), lambda body: None)


def download(name: str) -> Call[bytes]:
    """The classifier as the bytes of a safetensors file."""
    return Call("GET", f"{_place(name)}/file", bytes, binary=True)


def upload(name: str, file: bytes | str | os.PathLike[str]) -> Call[Classifier]:
    """Keep a classifier that `download` gave, from its bytes or from the path of a file, under a name of its own."""
    content = file if isinstance(file, bytes) else Path(file).read_bytes()
    return Call("PUT", f"{_place(name)}/file", Classifier.read, content=content, repeatable=False)


def upload_embeddings(embeddings: Matrix) -> Call[Upload]:
    """Bring embeddings to the server for later `fit`s, as one may for more than fit in a request."""
    return Call("POST", _UPLOADS, Upload.read, content=matrix_file(embeddings), repeatable=False)


def delete_embeddings(upload: str | Upload) -> Call[None]:
    """Make the server forget uploaded embeddings at once."""
    name = upload if isinstance(upload, str) else upload.id
    return Call("DELETE", f"{_UPLOADS}/{quote(name, safe='')}", lambda body: None)


class Classifiers(Part):
    """client.classifiers: made, listed, moved between servers and deleted; `client.classify` uses them."""

    fit = blocking(fit)
    get = blocking(get)
    list = blocking(list_all)
    delete = blocking(delete)
    download = blocking(download)
    upload = blocking(upload)
    upload_embeddings = blocking(upload_embeddings)
    delete_embeddings = blocking(delete_embeddings)


class AsyncClassifiers(AsyncPart):
    """The same for asyncio."""

    fit = asynchronous(fit)
    get = asynchronous(get)
    list = asynchronous(list_all)
    delete = asynchronous(delete)
    download = asynchronous(download)
    upload = asynchronous(upload)
    upload_embeddings = asynchronous(upload_embeddings)
    delete_embeddings = asynchronous(delete_embeddings)


def _place(name: str) -> str:
    return f"{_PATH}/{quote(name, safe='')}"
