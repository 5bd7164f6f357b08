"""The bodies of /v1/classify and /v1/classifiers: images to label, and what classifiers are learned from."""

import base64
import binascii
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

from covervlm.server.api.image_inputs import MOST_IMAGES, ImageInput
from covervlm.server.api.wire.chat_request import Text, Wire, items
from covervlm.server.api.wire.methods import MethodBody
from covervlm.server.clip.methods.registry import method_names
from covervlm.server.core.errors import InvalidRequest

MOST_EXAMPLES = 50_000
"""Labels, groups and ids of so many, all three, are more values than a body may hold (see `core.parsing`)."""
_LONGEST_NAME = 1000
MOST_LABELS = 100_000
"""Of an answer."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Classes = Annotated[list[Text], items(10_000, 0)]
Templates = Annotated[list[Text], items(100)]
ShortText = Annotated[Text, Field(max_length=_LONGEST_NAME)]
Column = Annotated[list[ShortText], items(MOST_EXAMPLES)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class ClassifyRequest(Wire):
    """Images, and either class names (with templates, if not the built-in seven) or a classifier's name.

    probabilities: `softmax` makes those of an image add up to 1; `sigmoid` takes each class by itself, and several or
    none may be likely. By default they are the model's own: sigmoid for SigLIP and class names, else softmax.
    abstain_below: answers of less confidence are marked as abstained.
    """

    model: Text | None = None
    images: Annotated[list[ImageInput], items(2048)]
    classes: Classes | None = None
    templates: Templates | None = None
    classifier: Text | None = None
    top: Annotated[int, Field(ge=1, le=10_000)] = 5
    probabilities: Literal["softmax", "sigmoid"] | None = None
    abstain_below: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.classes is None) == (self.classifier is None):
            raise ValueError("give either 'classes' or 'classifier'")
        if self.classifier is not None and self.templates is not None:
            raise ValueError("'templates' goes with 'classes', not with 'classifier'")
        check_answer_size(len(self.images), self.top)
        return self


def check_answer_size(images: int, top: int) -> None:
    """ValueError for more labels than an answer should carry."""
    if images * top > MOST_LABELS:
        raise ValueError(f"'top' times the number of images may be {MOST_LABELS} at most; lower 'top'")


class ClassProbability(BaseModel):
    label: str
    probability: float


class Classification(BaseModel):
    """One image's label and how probable it is; `top` holds the likeliest classes, best first."""

    index: int
    label: str
    confidence: float
    top: list[ClassProbability]

    @classmethod
    def of(cls, index: int, best: list[tuple[str, float]], **more: Any) -> Self:
        top = [ClassProbability(label=label, probability=probability) for label, probability in best]
        return cls(index=index, label=top[0].label, confidence=top[0].probability, top=top, **more)


class CautiousClassification(Classification):
    """margin: by how much the label is more probable than the next one. abstained: it is not sure enough."""

    margin: float
    abstained: bool


class ClassificationList(BaseModel):
    object: Literal["list"] = "list"
    model: str
    classes: int
    probabilities: Literal["softmax", "sigmoid"]
    data: list[CautiousClassification]


class Example(Wire):
    """An image, or its embedding by this model as numbers or as base64 of float32, with its label.

    group: by which errors are to be alike. id: by which the report calls it; else its place in the request, from 0.
    """

    image: ImageInput | None = None
    embedding: Annotated[list[Number], items(65_536)] | Text | None = None
    label: ShortText
    group: ShortText | None = None
    id: ShortText | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.image is None) == (self.embedding is None):
            raise ValueError("give either 'image' or 'embedding'")
        return self

    def row(self, dimensions: int, param: str) -> np.ndarray:
        """(dimensions,) float32. Raises InvalidRequest."""
        if isinstance(self.embedding, str):
            values = np.frombuffer(decoded(self.embedding, param, multiple=4), "<f4")
        else:
            values = np.asarray(self.embedding, np.float32)
        if len(values) != dimensions:
            message = f"The embedding has {len(values)} dimensions; this model's have {dimensions}."
            raise InvalidRequest(message, param=param, code="invalid_value")
        length = float(np.linalg.norm(values.astype(np.float64)))
        if not 0 < length < float("inf"):
            message = "The embedding holds NaN or infinity, or is zero throughout."
            raise InvalidRequest(message, param=param, code="invalid_value")
        return values


class ClassifierRequest(MethodBody):
    """A name, and labelled `examples`, or embeddings with `labels`, `groups` and `ids` in their order; or no labels.

    Embeddings are those of `uploads`, ids from POST /v1/embeddings/uploads, and then those of `embeddings`, a .npy or
    .safetensors file in base64. `inmap` learns without labels, from them or from `images`, and needs `classes`; else
    these are the labels that occur. Without `method`, it is `auto` for labels and `inmap` without.

    label_map: from labels to the classes that they belong to. prior: each class's share where the classifier will be
    used. seed: of the hold-out and of what is random in learning.
    """

    model: Text | None = None
    name: Name
    classes: Classes | None = None
    templates: Templates | None = None
    examples: Annotated[list[Example], items(MOST_EXAMPLES, 0)] = Field(default_factory=list)
    images: Annotated[list[ImageInput], items(MOST_IMAGES, 0)] = Field(default_factory=list)
    embeddings: Text | None = None
    uploads: Annotated[list[Text], items(1000, 0)] = Field(default_factory=list)
    labels: Column | None = None
    groups: Column | None = None
    ids: Column | None = None
    label_map: dict[Text, Text] | None = None
    prior: dict[Text, Annotated[float, Field(gt=0, le=1e9)]] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @property
    def labelled(self) -> bool:
        return bool(self.examples) or self.labels is not None

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        if self.labelled == (self.method in method_names("fit")):
            if self.labelled:
                raise ValueError(f"'{self.method}' learns without labels; leave them out, or choose another method")
            raise ValueError(f"'{self.method}' needs labelled 'examples', or 'uploads' or 'embeddings' with 'labels'")
        if self.labelled and self.images:
            raise ValueError("labelled images go into 'examples', not into 'images'")
        if self.examples and self.labels is not None:
            raise ValueError("'labels' goes with 'uploads' and 'embeddings', not with 'examples'")
        if self.examples and (self.uploads or self.embeddings is not None):
            raise ValueError("'examples' carry their own embeddings; leave 'uploads' and 'embeddings' out")
        if len({example.group is None for example in self.examples}) > 1:
            raise ValueError("either every example has a group or none")
        if not self.labelled:
            for field in ("groups", "ids", "label_map", "prior"):
                if getattr(self, field) is not None:
                    raise ValueError(f"'{field}' goes with labels")
            if self.classes is None:
                raise ValueError("'classes' are needed where there are no labels")
        for field in ("groups", "ids"):
            column = getattr(self, field)
            if column is not None and len(column) != len(self.labels or ()):
                raise ValueError(f"there are {len(self.labels or ())} labels, but {len(column)} {field}")
        if sum(example.image is not None for example in self.examples) > MOST_IMAGES:
            raise ValueError(f"at most {MOST_IMAGES} images may be sent at once; embed them first and send embeddings")
        return self

    def in_order(self) -> list[int]:
        """The examples' places, those with images first."""
        return sorted(range(len(self.examples)), key=lambda i: self.examples[i].image is None)


def has_labels(body: Any) -> bool:
    """Of a body that is not checked yet."""
    return isinstance(body, dict) and bool(body.get("examples") or body.get("labels") is not None)


class ClassifierCard(BaseModel):
    """A classifier without its tensors; `about` says how it was made, and its `report`, what it is worth."""

    id: str
    object: Literal["classifier"] = "classifier"
    name: str
    version: int
    created: int
    bytes: int
    about: dict[str, Any]


class ClassifierList(BaseModel):
    """Every version, oldest first, without their reports."""

    object: Literal["list"] = "list"
    data: list[ClassifierCard]


class UploadCard(BaseModel):
    """Embeddings in the server's memory; they are forgotten within an hour and never written to disk."""

    id: str
    object: Literal["embeddings.upload"] = "embeddings.upload"
    images: int
    dimensions: int


class Deleted(BaseModel):
    id: str
    deleted: Literal[True] = True


def decoded(text: str, param: str, *, multiple: int = 1) -> bytes:
    """Base64 as so many bytes at a time. Raises InvalidRequest."""
    try:
        data = base64.b64decode(text, validate=True)
        if len(data) % multiple:
            raise ValueError("cut short")
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"'{param}' is not valid base64.", param=param, code="invalid_value") from None
    return data
