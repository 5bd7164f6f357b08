"""What the server answers, as plain frozen objects, and how they are read from its JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from covervlm.clients.images import ImageSource, pil_image

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Usage:
    """Tokens that the language model really read and wrote; pruned vision tokens are not counted."""

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int
    text_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        details = body["prompt_tokens_details"]
        return cls(body["prompt_tokens"], body["completion_tokens"], details["image_tokens"], details["text_tokens"])


@dataclass(frozen=True)
class PrunedImage:
    """What became of one image's vision tokens.

    coverage: reached share of the full set's, None for methods without one. milliseconds: of the selection.
    indices: kept places among the `total` tokens; grid: (rows, columns) of all of them, in raster order; box: the area
    that the grid covers, (left, top, right, bottom) in pixels of the image. They are None where they were not asked
    for, grid and box also where a model's tokens form no single grid.
    """

    total: int
    kept: int
    method: str
    coverage: float | None
    milliseconds: float
    indices: tuple[int, ...] | None = None
    grid: tuple[int, int] | None = None
    box: tuple[float, float, float, float] | None = None

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        indices, grid, box = body.get("indices"), body.get("grid"), body.get("box")
        return cls(
            body["total"],
            body["kept"],
            body["method"],
            body["coverage"],
            body["milliseconds"],
            None if indices is None else tuple(indices),
            None if grid is None else (grid[0], grid[1]),
            None if box is None else (box[0], box[1], box[2], box[3]),
        )

    def overlay(self, image: ImageSource) -> "Image":
        """The image with its kept patches lit and the others dimmed. Raises ValueError without indices or a grid."""
        from covervlm.server.overlay import draw_overlay

        if self.indices is None or self.grid is None:
            raise ValueError("the answer has no indices on a grid to draw; ask with return_indices=True")
        return draw_overlay(pil_image(image).convert("RGB"), self.grid, self.indices, box=self.box)


@dataclass(frozen=True)
class PruneResult(PrunedImage):
    """What a question keeps of one image, and the length of the prompt that the language model would read.

    seconds: of each stage on the way, by its name.
    """

    prompt_tokens: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        image = PrunedImage.read(body["images"][0])
        return cls(**vars(image), prompt_tokens=body["prompt_tokens"], seconds=body["seconds"])


@dataclass(frozen=True)
class ChatAnswer:
    """An answer, what it cost, and what was pruned for it.

    finish_reason: "stop", or "length" where it was cut off. images: one report per image of the request, in reading
    order. seconds: of each stage before the first token. raw: the response as it came; None for a streamed answer.
    """

    id: str
    model: str
    text: str
    finish_reason: str
    usage: Usage
    images: tuple[PrunedImage, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    raw: Mapping[str, Any] | None = field(default=None, repr=False)

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        choice = body["choices"][0]
        images, seconds = read_pruning(body.get("vision_pruning"))
        return cls(
            body["id"],
            body["model"],
            choice["message"]["content"],
            choice["finish_reason"],
            Usage.read(body["usage"]),
            images,
            seconds,
            body,
        )


@dataclass(frozen=True)
class Model:
    """A served model, or its name with a budget such as demo:64.

    vision_tokens: of one image, None where that depends on the image. keep_tokens: the budget in the name. The model
    that embeds has none of the numbers.
    """

    id: str
    context_length: int | None
    vision_tokens: int | None
    keep_tokens: int | None

    @classmethod
    def read_list(cls, body: Mapping[str, Any]) -> list[Self]:
        return [cls(m["id"], m["max_model_len"], m["vision_tokens"], m["keep_tokens"]) for m in body["data"]]


def read_pruning(block: Mapping[str, Any] | None) -> tuple[tuple[PrunedImage, ...], Mapping[str, float]]:
    """Images and seconds of a `vision_pruning` block, which a request without images has not."""
    if block is None:
        return (), {}
    return tuple(PrunedImage.read(image) for image in block["images"]), block["seconds"]
