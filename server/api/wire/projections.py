"""The bodies of /v1/projections: spaces for search, and what they are learned from."""

from typing import Literal, Self

from pydantic import BaseModel, model_validator

from covervlm.server.api.wire.examples import LabelledBody
from covervlm.server.api.wire.trained import TrainedCard


class ProjectionRequest(LabelledBody):
    """A name, and labelled `examples`, or embeddings with `labels` and `ids` in their order.

    Embeddings are those of `uploads`, ids from POST /v1/embeddings/uploads, and then those of `embeddings`, a .npy or
    .safetensors file in base64. `coins` needs two views of each image: of images the server makes them, embeddings have
    to be (images, 2, dimensions). `kda` learns without labels as well, also from `images`.

    label_map: from labels to what is learned from; it is judged by the labels. seed: of the hold-out, of the views, and
    of what is random in learning.
    """

    @model_validator(mode="after")
    def _suits_the_method(self) -> Self:
        if self.method != "kda":
            self.check_labels(labelled=True)
        for number, example in enumerate(self.examples):
            if example.group is not None:
                raise ValueError(f"'examples[{number}].group' is for classifiers; leave it out")
            if self.method == "coins" and example.image is None:
                raise ValueError(
                    f"'coins' needs two views, and 'examples[{number}].embedding' is one; give 'image', or 'uploads' "
                    "of (images, 2, dimensions)"
                )
        return self


class ProjectionCard(TrainedCard):
    """A projection without its matrix. model: by which /v1/embeddings embeds in this version."""

    object: Literal["projection"] = "projection"
    model: str


class ProjectionList(BaseModel):
    """Every version, oldest first, without their reports."""

    object: Literal["list"] = "list"
    data: list[ProjectionCard]
