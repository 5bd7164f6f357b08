"""What a model in this process gives back: the client's own objects, and an answer that is still being written."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from covervlm.clients import ChatAnswer, PruneResult

if TYPE_CHECKING:
    from PIL.Image import Image

    from covervlm.clients import ImageSource
    from covervlm.clients.videos import Medium


@dataclass(frozen=True)
class Selection(PruneResult):
    """What a question keeps of one image, which can be drawn. image: as it was given."""

    image: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, body: dict[str, Any], image: "Medium") -> Self:
        return replace(cls.read(body), image=image)

    def overlay(self, image: "ImageSource | None" = None) -> "Image":
        """The image, or another one, with the dropped patches dimmed.

        Raises ValueError where the model's tokens do not form a single grid, and TypeError for an image at a URL.
        """
        return super().overlay(self.image if image is None else image)


class Stream:
    """Iterate over it once for pieces of text; leaving the loop early ends the generation.

    answer: the whole answer, once the stream has been read to its end; None before.
    """

    def __init__(self, pieces: Iterator[str | ChatAnswer]) -> None:
        self._pieces = pieces
        self.answer: ChatAnswer | None = None

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            if isinstance(piece, ChatAnswer):
                self.answer = piece
            else:
                yield piece
