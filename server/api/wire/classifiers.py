"""The bodies of /v1/classify and /v1/classifiers: images to label, and classifiers to learn."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from covervlm.server.api.image_inputs import ImageInput
from covervlm.server.api.wire.chat_request import Text, Wire, items
from covervlm.server.api.wire.examples import Column, LabelledBody
from covervlm.server.api.wire.trained import TrainedCard
from covervlm.server.clip.methods.registry import method_names

MOST_LABELS = 100_000
"""Of an answer."""

Classes = Annotated[list[Text], items(10_000, 0)]
Templates = Annotated[list[Text], items(100)]


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


class ClassifierRequest(LabelledBody):
    """A name, and labelled `examples`, or embeddings with `labels`, `groups` and `ids` in their order; or no labels.

    Embeddings are those of `uploads`, ids from POST /v1/embeddings/uploads, and then those of `embeddings`, a .npy or
    .safetensors file in base64. `inmap` learns without labels, from them or from `images`, and needs `classes`; else
    these are the labels that occur. Without `method`, it is `auto` for labels and `inmap` without.

    label_map: from labels to the classes that they belong to. prior: each class's share where the classifier will be
    used. seed: of the hold-out and of what is random in learning. keep_examples: keep the embeddings and ids of up to
    5,000 labelled examples with the classifier, for explanations; else nothing of them is kept.
    """

    classes: Classes | None = None
    templates: Templates | None = None
    groups: Column | None = None
    prior: dict[Text, Annotated[float, Field(gt=0, le=1e9)]] | None = None
    keep_examples: bool = False

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        self.check_labels(labelled=self.method not in method_names("fit"))
        if len({example.group is None for example in self.examples}) > 1:
            raise ValueError("either every example has a group or none")
        if not self.labelled:
            for field in ("groups", "prior"):
                if getattr(self, field) is not None:
                    raise ValueError(f"'{field}' goes with labels")
            if self.keep_examples:
                raise ValueError("'keep_examples' goes with labels")
            if self.classes is None:
                raise ValueError("'classes' are needed where there are no labels")
        self.check_column("groups")
        return self


def has_labels(body: Any) -> bool:
    """Of a body that is not checked yet."""
    return isinstance(body, dict) and bool(
        body.get("examples") or body.get("labels") is not None or body.get("labels_csv") is not None
    )


class ClassifierCard(TrainedCard):
    """A classifier without its tensors; `about` says how it was made, and its `report`, what it is worth."""

    object: Literal["classifier"] = "classifier"


class ClassifierList(BaseModel):
    """Every version, oldest first, without their reports."""

    object: Literal["list"] = "list"
    data: list[ClassifierCard]
