"""Labels of examples as their owner writes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Labels:
    """One label for each example, in the features' order; groups and ids for all of them, or none.

    place: of an example's number and a field ("label", "group" or "id") in the request.
    """

    labels: Sequence[str]
    groups: Sequence[str] | None
    ids: Sequence[str]
    place: Callable[[int, str], str]
