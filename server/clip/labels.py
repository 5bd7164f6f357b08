"""Labels of examples as their owner writes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from covervlm.server.core.errors import InvalidRequest


@dataclass(frozen=True, eq=False)
class Labels:
    """One label for each example, in the features' order; groups and ids for all of them, or none.

    place: of an example's number and a field ("label", "group" or "id") in the request.
    """

    labels: Sequence[str]
    groups: Sequence[str] | None
    ids: Sequence[str]
    place: Callable[[int, str], str]

    def check_count(self, examples: int) -> None:
        """Raises InvalidRequest unless there are so many labels."""
        if len(self.labels) != examples:
            message = f"There are {examples} images and embeddings, but {len(self.labels)} labels."
            raise InvalidRequest(message, param="labels", code="invalid_value")
