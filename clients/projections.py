"""Spaces for search that the server learns from examples, each an embedding model of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from covervlm.clients.calls import Call, given
from covervlm.clients.embeddings import Matrix
from covervlm.clients.examples import Upload, labelled, vectors
from covervlm.clients.images import Images
from covervlm.clients.jobs import RESULTS, Job
from covervlm.clients.methods import Asyncio, Blocking, method
from covervlm.clients.records import Record
from covervlm.clients.stored import Stored
from covervlm.clients.tables import Labels

_PATH = "/v1/projections"

RESULTS["projection"] = lambda body: str(body["projection"])


@dataclass(frozen=True)
class SearchSpace(Record):
    """A stored projection; `name@version` names it for good, `name` the newest version.

    model: what `embed_images` and `embed_texts`, or any OpenAI client, take to embed in it. created: Unix time. about:
    method, parameters, number of images, ...
    """

    id: str
    name: str
    version: int
    model: str
    created: int
    bytes: int
    about: Mapping[str, Any] = field(repr=False)

    @property
    def report(self) -> Mapping[str, Any]:
        """Recall and NMI on labels that it has not seen, beside the unprojected embeddings; empty in lists."""
        report: Mapping[str, Any] = self.about.get("report", {})
        return report


def train(
    name: str,
    labels: Labels | None = None,
    images: Images = None,
    *,
    embeddings: Matrix | None = None,
    uploads: Sequence[str | Upload] = (),
    ids: Sequence[str] | None = None,
    label_map: Mapping[str, str] | None = None,
    method: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    seed: int = 0,
    model: str | None = None,
    timeout: float | None = None,
) -> Call[Job[str]]:
    """Start a job that learns a space for search from labelled images, or from the embeddings of such images.

    labels, ids: one for each image, or each row of `uploads` and then of `embeddings`; or labels is the Path of a .csv
    or .parquet file with the columns label and, if any, id. Images of one label are to be found by each other. method:
    `soft_triple` (default), `coins` (finer than its labels; embeddings of two views each, (n, 2, d)) or `kda` (fewer
    dimensions, without labels as well). label_map: from labels to what is learned from; it is judged by the labels. The
    job's result is `name@version`; `get(...).report` tells what it is worth.
    """
    body = {
        "name": name,
        "seed": seed,
        **labelled(labels, images, ids=ids),
        **vectors(embeddings, uploads),
        **given(label_map=label_map, method=method, parameters=parameters, model=model),
    }
    return Call("POST", _PATH, Job[str].read, body, timeout=timeout, repeatable=False)


_STORED = Stored(_PATH, SearchSpace)


class _Methods:
    train = method(train)
    get = method(_STORED.get)
    list = method(_STORED.list_all)
    delete = method(_STORED.delete)
    download = method(_STORED.download)
    upload = method(_STORED.upload)


class Projections(_Methods, Blocking):
    """client.projections: learn, list, download, upload, delete; `client.embed_images` uses them by their `model`."""


class AsyncProjections(_Methods, Asyncio):
    """The same for asyncio."""
