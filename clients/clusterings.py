"""Groups of images by an aspect that the user names."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from covervlm.clients.calls import Call, given
from covervlm.clients.clip_answers import Clustering
from covervlm.clients.images import Images, image_part, sources
from covervlm.clients.jobs import Job


def cluster(
    images: Images,
    aspect: str,
    *,
    subject: str | None = None,
    words: Sequence[str] | None = None,
    clusters: int | None = None,
    method: Literal["multi_map", "multi_sub", "clip_kmeans"] | None = None,
    prompt: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    seed: int = 0,
    model: str | None = None,
    timeout: float | None = None,
) -> Call[Job[Clustering]]:
    """Start a job that groups images by e.g. their "color"; `client.jobs.wait` gives its Clustering.

    subject: what the images show, e.g. "fruit". words: the aspect's possible values; by default the served model is
    asked for them. clusters: how many, by default as many as fit best. prompt: a sentence that ends in *, the word's
    place; by default the server chooses one. parameters: Multi-MaP's.
    """
    body = {
        "images": [image_part(image) for image in sources(images)],
        "aspect": aspect,
        "seed": seed,
        **given(
            subject=subject,
            words=None if words is None else list(words),
            clusters=clusters,
            method=method,
            prompt=prompt,
            parameters=parameters,
            model=model,
        ),
    }
    return Call("POST", "/v1/clusterings", Job[Clustering].read, body, timeout=timeout, repeatable=False)
