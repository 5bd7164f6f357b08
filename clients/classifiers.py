"""Labels for images, by class names alone or by a classifier that the server has learned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote

from covervlm.clients.calls import Call, given, listed
from covervlm.clients.embeddings import Matrix, matrix_file
from covervlm.clients.examples import Upload, labelled, vectors
from covervlm.clients.images import Images, image_parts
from covervlm.clients.jobs import RESULTS, Job
from covervlm.clients.methods import Asyncio, Blocking, method
from covervlm.clients.records import Record
from covervlm.clients.stored import Stored
from covervlm.clients.tables import Labels

_PATH = "/v1/classifiers"
_UPLOADS = "/v1/embeddings/uploads"

RESULTS["classifier"] = lambda body: str(body["classifier"])


@dataclass(frozen=True)
class Classification(Record):
    """One image's label. confidence: its probability. top: (label, probability) of the likeliest classes, best first.

    index: the image's place in the request, or among all images of its stream; from 0. margin: by how much the label is
    more probable than the next one; None in streams. abstained: less confident than `abstain_below`.
    """

    index: int
    label: str
    confidence: float
    top: tuple[tuple[str, float], ...]
    margin: float | None = None
    abstained: bool = False

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        top = tuple((entry["label"], entry["probability"]) for entry in body["top"])
        return super().read({**body, "top": top})


@dataclass(frozen=True)
class Classifier(Record):
    """A stored classifier; `name@version` names it for good, `name` the newest version.

    created: Unix time. about: classes, templates, parameters, number of images, ...
    """

    id: str
    name: str
    version: int
    created: int
    bytes: int
    about: Mapping[str, Any] = field(repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.about["classes"])

    @property
    def report(self) -> Mapping[str, Any]:
        """What it is worth on held-out examples; empty where it was learned without labels, and in lists."""
        report: Mapping[str, Any] = self.about.get("report", {})
        return report


def classify(
    images: Images,
    classes: Sequence[str] | None = None,
    *,
    classifier: str | None = None,
    templates: Sequence[str] | None = None,
    top: int = 5,
    abstain_below: float = 0.0,
    model: str | None = None,
    timeout: float | None = None,
) -> Call[list[Classification]]:
    """A label for every image: the likeliest of `classes`, or of the classes of a stored `classifier`.

    templates: sentences with {} in the class name's place, e.g. "a photo of a {}."; by default CLIP's seven.
    top: how many of the likeliest classes each answer has. abstain_below: answers of less confidence are `abstained`.
    """
    body = {
        "images": image_parts(images),
        "top": top,
        "abstain_below": abstain_below,
        **given(classes=listed(classes), classifier=classifier, templates=listed(templates), model=model),
    }
    return Call("POST", "/v1/classify", Classification.read_list, body, timeout=timeout)


def classify_points(
    images: Images,
    classes: Sequence[str] | None = None,
    *,
    classifier: str | None = None,
    templates: Sequence[str] | None = None,
    abstain_below: float = 0.0,
    model: str | None = None,
    timeout: float | None = None,
) -> Call[bytes]:
    """What `classify` finds, as the bytes of a Parquet file for pandas and viewers of embeddings.

    Columns: `image` (its index), `label`, `confidence`, `margin`, `abstained`, `x` and `y` in the plane in which the
    embeddings vary most, and `vector`, the embedding.
    """
    call = classify(
        images,
        classes,
        classifier=classifier,
        templates=templates,
        top=1,
        abstain_below=abstain_below,
        model=model,
        timeout=timeout,
    )
    accept = {"Accept": "application/vnd.apache.parquet"}
    return Call(call.method, call.path, bytes, call.body, headers=accept, timeout=timeout, binary=True)


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
    uploads: from `upload_embeddings`. parameters: InMaP's, e.g. {"gamma": 0.5}. The job's result is `name@version`.
    """
    body = {
        "name": name,
        "classes": list(classes),
        "images": image_parts(images),
        **vectors(embeddings, uploads),
        **given(templates=listed(templates), parameters=parameters, model=model),
    }
    return Call("POST", _PATH, Job[str].read, body, timeout=timeout, repeatable=False)


def train(
    name: str,
    labels: Labels,
    images: Images = None,
    *,
    embeddings: Matrix | None = None,
    uploads: Sequence[str | Upload] = (),
    groups: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    label_map: Mapping[str, str] | None = None,
    prior: Mapping[str, float] | None = None,
    method: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    templates: Sequence[str] | None = None,
    keep_examples: bool = False,
    seed: int = 0,
    model: str | None = None,
    timeout: float | None = None,
) -> Call[Job[str]]:
    """Start a job that learns a classifier from labelled images, or from the embeddings of such images.

    labels, groups, ids: one for each image, or each row of `uploads` and then of `embeddings`; or labels is the Path
    of a .csv or .parquet file with the columns label and, if any, group and id. groups: by which errors are to be
    alike. ids: by which the report calls them. classes: by default the labels that occur. label_map: from labels to
    classes. prior: each class's share where it will be used. method: by default the best of several on held-out
    examples. keep_examples: keep embeddings and ids of up to 5,000 examples on the server, for `explain`. The job's
    result is `name@version`; `get(...).report` tells what it is worth.
    """
    body = {
        "name": name,
        "seed": seed,
        **labelled(labels, images, groups=groups, ids=ids),
        **vectors(embeddings, uploads),
        **given(classes=listed(classes), label_map=label_map, prior=prior, method=method),
        **given(parameters=parameters, templates=listed(templates), model=model),
        **({"keep_examples": True} if keep_examples else {}),
    }
    return Call("POST", _PATH, Job[str].read, body, timeout=timeout, repeatable=False)


def upload_embeddings(embeddings: Matrix) -> Call[Upload]:
    """Upload embeddings for later calls of `fit`, e.g. where there are more than one request can hold."""
    return Call("POST", _UPLOADS, Upload.read, content=matrix_file(embeddings), repeatable=False)


def delete_embeddings(upload: str | Upload) -> Call[None]:
    """Delete uploaded embeddings."""
    name = upload if isinstance(upload, str) else upload.id
    return Call("DELETE", f"{_UPLOADS}/{quote(name, safe='')}", lambda body: None)


_STORED = Stored(_PATH, Classifier)


class _Methods:
    fit = method(fit)
    train = method(train)
    get = method(_STORED.get)
    list = method(_STORED.list_all)
    delete = method(_STORED.delete)
    download = method(_STORED.download)
    upload = method(_STORED.upload)
    upload_embeddings = method(upload_embeddings)
    delete_embeddings = method(delete_embeddings)


class Classifiers(_Methods, Blocking):
    """client.classifiers: learn, list, download, upload and delete; `client.classify` uses them."""


class AsyncClassifiers(_Methods, Asyncio):
    """The same for asyncio."""
