"""Groups of images by an aspect that the user names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from covervlm.clients.calls import Call, given, listed
from covervlm.clients.images import Images, image_parts
from covervlm.clients.jobs import RESULTS, Job
from covervlm.clients.records import Record


@dataclass(frozen=True)
class Cluster(Record):
    """A group of images. name: the reference word that is nearest to most of them. proxy: their mean vector."""

    name: str
    size: int
    proxy: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True)
class Clustering(Record):
    """Images grouped by an aspect. labels: each image's index in `clusters`. projection: each image's (x, y) to plot.

    silhouette: from -1 to 1, None with a single cluster. words: the reference words. words_from: where these came
    from, "request" or "model". raw: the whole result as JSON.
    """

    labels: tuple[int, ...]
    clusters: tuple[Cluster, ...]
    projection: tuple[tuple[float, float], ...] = field(repr=False)
    silhouette: float | None
    aspect: str
    words: tuple[str, ...]
    words_from: str
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def names(self) -> list[str]:
        """The name of each image's cluster."""
        return [self.clusters[label].name for label in self.labels]

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        clusters = tuple(map(Cluster.read, body["clusters"]))
        return super().read({**body, "clusters": clusters, "raw": body})


RESULTS["clustering"] = Clustering.read


def cluster(
    images: Images,
    aspect: str,
    *,
    subject: str | None = None,
    words: Sequence[str] | None = None,
    clusters: int | None = None,
    method: str | None = None,
    prompt: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    seed: int = 0,
    model: str | None = None,
    timeout: float | None = None,
) -> Call[Job[Clustering]]:
    """Start a job that groups images by e.g. their "color"; `client.jobs.wait` gives its Clustering.

    subject: what the images show, e.g. "fruit". words: the aspect's possible values; by default the served model is
    asked for them. clusters: how many; by default the number that fits best. prompt: a sentence that ends in * in
    the word's place, or "*" for the word alone; by default the server chooses one. parameters: the method's.
    """
    body = {
        "images": image_parts(images),
        "aspect": aspect,
        "seed": seed,
        **given(
            subject=subject,
            words=listed(words),
            clusters=clusters,
            method=method,
            prompt=prompt,
            parameters=parameters,
            model=model,
        ),
    }
    return Call("POST", "/v1/clusterings", Job[Clustering].read, body, timeout=timeout, repeatable=False)
