"""Why a classifier gives a label: for one image at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from covervlm.clients.calls import Call, given
from covervlm.clients.images import ImageSource, image_part, pil_image
from covervlm.clients.records import Record

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Region(Record):
    """Embeddings with the same `id` have the same explanation; the border is `distance` away."""

    id: str
    distance: float


@dataclass(frozen=True)
class ClassEvidence(Record):
    """score: before the softmax. similarity: cosine with the mean of its kept examples, None where there are none."""

    label: str
    probability: float
    score: float
    similarity: float | None


@dataclass(frozen=True)
class Neighbour(Record):
    """An example that the classifier keeps. similarity: its cosine with the image."""

    id: str
    label: str
    similarity: float


@dataclass(frozen=True)
class Explanation(Record):
    """Why `label` rather than `against`.

    difference: of their scores: `constant` plus the sum of `contributions`, one for each number of the embedding.
    region: where this holds exactly; None for everywhere. classes: the likeliest ones. examples: how many the
    classifier keeps, of which `neighbours` are nearest. words: each word's weight in the decision, and `unexplained`
    the share of it that they leave; None without words. patches: how much each patch speaks for the label, by row and
    column, over `box` in pixels of the image; None for embeddings.
    """

    classifier: str
    label: str
    against: str
    difference: float
    constant: float
    contributions: tuple[float, ...] = field(repr=False)
    region: Region | None
    classes: tuple[ClassEvidence, ...]
    examples: int
    neighbours: tuple[Neighbour, ...]
    words: Mapping[str, float] | None = None
    unexplained: float | None = None
    patches: tuple[tuple[float, ...], ...] | None = field(default=None, repr=False)
    box: tuple[float, float, float, float] | None = None

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        words, patches = body["words"] or {}, body["patches"] or {}
        return super().read(
            {
                **body,
                "region": body["region"] and Region.read(body["region"]),
                "classes": tuple(map(ClassEvidence.read, body["classes"])),
                "neighbours": tuple(map(Neighbour.read, body["neighbours"])),
                "words": {one["word"]: one["weight"] for one in words["weights"]} if words else None,
                "unexplained": words.get("unexplained"),
                "patches": patches.get("values"),
                "box": patches.get("box"),
            }
        )

    def overlay(self, image: ImageSource) -> "Image":
        """The image, the brighter the more a patch speaks for the label. Raises ValueError without patches."""
        from covervlm.clients.overlay import draw_evidence

        if self.patches is None:
            raise ValueError("the explanation has no patches: it is of an embedding, or of a tower of another kind")
        return draw_evidence(pil_image(image).convert("RGB"), self.patches, box=self.box)


def explain(
    classifier: str,
    image: ImageSource | None = None,
    *,
    embedding: Sequence[float] | None = None,
    label: str | None = None,
    against: str | None = None,
    words: Sequence[str] = (),
    neighbours: int = 5,
    top: int = 5,
    timeout: float | None = None,
) -> Call[Explanation]:
    """Why a stored classifier labels an image, or its embedding by the same model, as it does.

    label, against: why this class rather than that; by default the likeliest rather than the next. words: to say the
    decision in. neighbours: nearest examples to name, of a classifier that was trained with `keep_examples`.
    """
    body = {
        "words": list(words),
        "neighbours": neighbours,
        "top": top,
        **given(
            image=None if image is None else image_part(image),
            embedding=None if embedding is None else [float(value) for value in embedding],
            label=label,
            against=against,
        ),
    }
    path = f"/v1/classifiers/{quote(classifier, safe='')}/explain"
    return Call("POST", path, Explanation.read, body, timeout=timeout)
