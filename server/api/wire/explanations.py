"""The bodies of /v1/classifiers/NAME/explain: why a label, for one image."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from covervlm.server.api.image_inputs import ImageInput
from covervlm.server.api.wire.chat_request import Text, Wire, items
from covervlm.server.api.wire.examples import Vector


class ExplainRequest(Wire):
    """An image, or its embedding by this model as numbers or as base64 of float32.

    label, against: why this class rather than that; by default the likeliest one rather than the next. words: of a
    person, to say the decision in. neighbours: how many of the nearest examples to name. top: classes to tell of.
    """

    image: ImageInput | None = None
    embedding: Vector | None = None
    label: Text | None = None
    against: Text | None = None
    words: Annotated[list[Text], items(200, 0)] = Field(default_factory=list)
    neighbours: Annotated[int, Field(ge=0, le=100)] = 5
    top: Annotated[int, Field(ge=1, le=10_000)] = 5

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.image is None) == (self.embedding is None):
            raise ValueError("give either 'image' or 'embedding'")
        names = [" ".join(word.split()) for word in self.words]
        if len(set(names)) < len(names) or "" in names:
            raise ValueError("'words' holds an empty word or one twice")
        return self


class Region(BaseModel):
    """Embeddings with the same `id` have the same explanation; the border is `distance` away."""

    id: str
    distance: float


class ClassEvidence(BaseModel):
    """score: before the softmax. similarity: cosine with the mean of its kept examples, null where there are none."""

    label: str
    probability: float
    score: float
    similarity: float | None


class Neighbour(BaseModel):
    """A kept example. similarity: its cosine with the image."""

    id: str
    label: str
    similarity: float


class WordWeight(BaseModel):
    word: str
    weight: float


class InWords(BaseModel):
    """The decision's direction as a sum of the words' embeddings; `unexplained`: the share of its length left."""

    weights: list[WordWeight]
    unexplained: float


class PatchEvidence(BaseModel):
    """values: by row and column, how much each patch speaks for the label, or below 0 for `against`; in [-1, 1].

    box: the area that the grid covers, [left, top, right, bottom] in pixels of the image.
    """

    box: tuple[float, float, float, float]
    values: list[list[float]]


class Explanation(BaseModel):
    """difference: the label's score less that of `against`: `constant` plus the sum of `contributions`, one for each
    number of the embedding. region: where this linear form holds, null for everywhere.

    examples: how many the classifier keeps, of which `neighbours` are the nearest. patches: null for embeddings.
    """

    object: Literal["explanation"] = "explanation"
    classifier: str
    label: str
    against: str
    difference: float
    constant: float
    contributions: list[float]
    region: Region | None
    classes: list[ClassEvidence]
    examples: int
    neighbours: list[Neighbour]
    words: InWords | None
    patches: PatchEvidence | None
