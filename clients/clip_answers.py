"""What the CLIP endpoints answer, as plain frozen objects, and how they are read from the server's JSON."""

import base64
import sys
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors, one per input; `numpy.asarray(embeddings)` is (n, d) float32.

    vectors: arrays of float32, which `list` turns into numbers. prompt_tokens: of the texts; images count none.
    """

    model: str
    vectors: tuple["array[float]", ...]
    prompt_tokens: int

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, index: int) -> "array[float]":
        return self.vectors[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> "numpy.ndarray[Any, Any]":
        import numpy

        return numpy.array([numpy.frombuffer(vector, "float32") for vector in self.vectors], dtype)

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        vectors = [_floats(base64.b64decode(entry["embedding"])) for entry in body["data"]]
        return cls(body["model"], tuple(vectors), body["usage"]["prompt_tokens"])


@dataclass(frozen=True)
class Classification:
    """One image's label. top: (label, probability) of the likeliest classes, best first.

    index: the image's place in the request; of a session's images, counted from its first.
    """

    index: int
    label: str
    probability: float
    top: tuple[tuple[str, float], ...]

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        top = tuple((entry["label"], entry["probability"]) for entry in body["top"])
        return cls(body["index"], body["label"], body["probability"], top)

    @classmethod
    def read_list(cls, body: Mapping[str, Any]) -> list[Self]:
        return [cls.read(entry) for entry in body["data"]]


@dataclass(frozen=True)
class Classifier:
    """A stored classifier. created: Unix time. about: how it was made: classes, templates, parameters, images, ..."""

    id: str
    name: str
    created: int
    bytes: int
    about: Mapping[str, Any] = field(repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.about["classes"])

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        return cls(body["id"], body["name"], body["created"], body["bytes"], body["about"])

    @classmethod
    def read_list(cls, body: Mapping[str, Any]) -> list[Self]:
        return [cls.read(entry) for entry in body["data"]]


@dataclass(frozen=True)
class Upload:
    """Embeddings that the server holds in memory for up to an hour; `id` goes into `uploads`."""

    id: str
    images: int
    dimensions: int

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        return cls(body["id"], body["images"], body["dimensions"])


@dataclass(frozen=True)
class Session:
    """An online classifier: `observed` images were learned from; after a crash it has those of `snapshot_observed`."""

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

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        return cls(
            body["id"],
            body["created"],
            body["model"],
            tuple(body["classes"]),
            tuple(body["templates"]),
            body["horizon"],
            body["parameters"],
            body["observed"],
            body["snapshot_observed"],
            body["past_horizon"],
        )

    @classmethod
    def read_list(cls, body: Mapping[str, Any]) -> list[Self]:
        return [cls.read(entry) for entry in body["data"]]


@dataclass(frozen=True)
class Cluster:
    """A group of images: its name is the reference word that most of them are nearest to. proxy: their mean point."""

    name: str
    size: int
    proxy: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True)
class Clustering:
    """Images grouped by an aspect. labels: each image's place in `clusters`. projection: its point on a plane to plot.

    silhouette: from -1 to 1, None with a single cluster. words: the reference words, which came from `words_from`:
    the request or the model. raw: the whole result as it came.
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
        return cls(
            tuple(body["labels"]),
            tuple(Cluster(entry["name"], entry["size"], tuple(entry["proxy"])) for entry in body["clusters"]),
            tuple((x, y) for x, y in body["projection"]),
            body["silhouette"],
            body["aspect"],
            tuple(body["words"]),
            body["words_from"],
            body,
        )


def _floats(data: bytes) -> "array[float]":
    """Numbers from little-endian float32 bytes."""
    floats = array("f", data)
    if sys.byteorder == "big":
        floats.byteswap()
    return floats
