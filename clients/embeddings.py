"""Texts and images as vectors in one space."""

from collections.abc import Sequence
from typing import Any

from covervlm.clients.calls import Call, given
from covervlm.clients.clip_answers import Embeddings
from covervlm.clients.images import Images, image_part, sources


def embed_texts(
    texts: str | Sequence[str], *, model: str | None = None, timeout: float | None = None
) -> Call[Embeddings]:
    """The vector of every text. The dot product of two vectors is their cosine similarity, also with an image's."""
    return _embed([texts] if isinstance(texts, str) else list(texts), model, timeout)


def embed_images(images: Images, *, model: str | None = None, timeout: float | None = None) -> Call[Embeddings]:
    """The vector of every image: a path, an http(s) or data URL, bytes, a PIL image or a numpy array, or a list."""
    return _embed([image_part(image) for image in sources(images)], model, timeout)


def _embed(inputs: list[Any], model: str | None, timeout: float | None) -> Call[Embeddings]:
    body = {"input": inputs, "encoding_format": "base64", **given(model=model)}
    return Call("POST", "/v1/embeddings", Embeddings.read, body, timeout=timeout)
