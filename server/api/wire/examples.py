"""What trained things are learned from: examples, or uploads and files of embeddings with labels in their order."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, Field, Tag, model_validator

from covervlm.server.api.image_inputs import MOST_IMAGES, ImageInput
from covervlm.server.api.wire.chat_request import Text, Wire, items
from covervlm.server.api.wire.label_table import MOST_ROWS as MOST_EXAMPLES
from covervlm.server.api.wire.label_table import read_labels
from covervlm.server.api.wire.methods import MethodBody
from covervlm.server.clip.labels import Labels
from covervlm.server.core.base64_pieces import decoded_text
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.wire import one_of

_LONGEST_NAME = 1000

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
ShortText = Annotated[Text, Field(max_length=_LONGEST_NAME)]
Column = Annotated[list[ShortText], items(MOST_EXAMPLES)]
Number = Annotated[float, Field(allow_inf_nan=False)]


def _tag(value: object) -> str:
    return "<base64>" if isinstance(value, str) else "<numbers>"


Vector = Annotated[
    Annotated[list[Number], items(65_536), Tag("<numbers>")] | Annotated[Text, Tag("<base64>")],
    one_of(_tag, "numbers, or base64 of float32"),
]
"""An embedding."""


class Example(Wire):
    """An image, or its embedding by this model as numbers or as base64 of float32, with its label.

    group: by which errors are to be alike. id: by which the report calls it; else its place in the request, from 0.
    """

    image: ImageInput | None = None
    embedding: Vector | None = None
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
        assert self.embedding is not None
        return vector(self.embedding, dimensions, param)


class LabelledBody(MethodBody):
    """A name, and labelled `examples`, or embeddings with `labels` and `ids` in their order, or no labels.

    Embeddings are those of `uploads`, then those of `embeddings`. labels_csv: the text of a CSV file with the columns
    label and, if any, group and id, in place of these lists. label_map: from labels to what they belong to.
    """

    model: Text | None = None
    name: Name
    examples: Annotated[list[Example], items(MOST_EXAMPLES, 0)] = Field(default_factory=list)
    images: Annotated[list[ImageInput], items(MOST_IMAGES, 0)] = Field(default_factory=list)
    embeddings: Text | None = None
    uploads: Annotated[list[Text], items(1000, 0)] = Field(default_factory=list)
    labels: Column | None = None
    ids: Column | None = None
    labels_csv: Text | None = None
    label_map: dict[Text, Text] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="before")
    @classmethod
    def _read_table(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(text := data.get("labels_csv"), str):
            return data
        columns = read_labels(text)
        for field in columns:
            if data.get(field) is not None:
                raise ValueError(f"'labels_csv' has the {field}; leave '{field}' out")
        if "groups" in columns and "groups" not in cls.model_fields:
            raise ValueError("the column 'group' of 'labels_csv' is for classifiers; leave it out")
        return {**{name: value for name, value in data.items() if name != "labels_csv"}, **columns}

    @property
    def labelled(self) -> bool:
        return bool(self.examples) or self.labels is not None

    @model_validator(mode="after")
    def _examples_fit(self) -> Self:
        if self.labelled and self.images:
            raise ValueError("labelled images go into 'examples', not into 'images'")
        if self.examples and self.labels is not None:
            raise ValueError("'labels' goes with 'uploads' and 'embeddings', not with 'examples'")
        if self.examples and (self.uploads or self.embeddings is not None):
            raise ValueError("'examples' carry their own embeddings; leave 'uploads' and 'embeddings' out")
        if not self.labelled:
            for field in ("ids", "label_map"):
                if getattr(self, field) is not None:
                    raise ValueError(f"'{field}' goes with labels")
        self.check_column("ids")
        if sum(example.image is not None for example in self.examples) > MOST_IMAGES:
            raise ValueError(f"at most {MOST_IMAGES} images may be sent at once; embed them first and send embeddings")
        return self

    def check_labels(self, *, labelled: bool) -> None:
        """ValueError where the method wants labels and there are none, or the other way round."""
        if self.labelled and not labelled:
            raise ValueError(f"'{self.method}' learns without labels; leave them out, or choose another method")
        if labelled and not self.labelled:
            raise ValueError(f"'{self.method}' needs labelled 'examples', or 'uploads' or 'embeddings' with 'labels'")

    def check_column(self, field: str) -> None:
        """ValueError where there are not as many of them as labels."""
        column = getattr(self, field)
        if column is not None and len(column) != len(self.labels or ()):
            raise ValueError(f"there are {len(self.labels or ())} labels, but {len(column)} {field}")

    def in_order(self) -> list[int]:
        """The examples' places, those with images first."""
        return sorted(range(len(self.examples)), key=lambda i: self.examples[i].image is None)

    def columns(self, order: Sequence[int], groups: list[str] | None = None) -> Labels | None:
        """In the order of the features, which `in_order` is for examples; None where there are no labels."""
        if not self.labelled:
            return None
        if self.labels is not None:
            ids = self.ids or [str(i) for i in range(len(self.labels))]
            return Labels(self.labels, groups, ids, lambda row, field: f"{field}s[{row}]")
        examples = [self.examples[i] for i in order]
        own = [example.group or "" for example in examples]
        return Labels(
            [example.label for example in examples],
            own if any(example.group is not None for example in examples) else None,
            [str(i) if example.id is None else example.id for i, example in zip(order, examples, strict=True)],
            lambda row, field: f"examples[{order[row]}].{field}",
        )

    def rows(self, order: Sequence[int], dimensions: int) -> np.ndarray | None:
        """(n, dimensions) float32 of the examples that come as embeddings. Raises InvalidRequest."""
        rows = [
            self.examples[i].row(dimensions, f"examples[{i}].embedding")
            for i in order
            if self.examples[i].image is None
        ]
        return np.stack(rows) if rows else None


class UploadCard(BaseModel):
    """Embeddings in the server's memory; they are forgotten within an hour and never written to disk.

    views: of each image.
    """

    id: str
    object: Literal["embeddings.upload"] = "embeddings.upload"
    images: int
    views: int = 1
    dimensions: int


def vector(given: Sequence[float] | str, dimensions: int, param: str) -> np.ndarray:
    """(dimensions,) float32 of numbers, or of base64 of little-endian float32. Raises InvalidRequest."""
    if isinstance(given, str):
        values = np.frombuffer(decoded(given, param, multiple=4), "<f4")
    else:
        values = np.asarray(given, np.float32)
    if len(values) != dimensions:
        message = f"The embedding has {len(values)} dimensions; this model's have {dimensions}."
        raise InvalidRequest(message, param=param, code="invalid_value")
    length = float(np.linalg.norm(values.astype(np.float64)))
    if not 0 < length < float("inf"):
        message = "The embedding holds NaN or infinity, or is zero throughout."
        raise InvalidRequest(message, param=param, code="invalid_value")
    return values


def decoded(text: str, param: str, *, multiple: int = 1) -> bytes:
    """Base64 as so many bytes at a time. Raises InvalidRequest."""
    try:
        data = decoded_text(text)
        if len(data) % multiple:
            raise ValueError("cut short")
    except ValueError:
        raise InvalidRequest(f"'{param}' is not valid base64.", param=param, code="invalid_value") from None
    return data
