"""Resize: a smaller picture instead of fewer of its tokens, the baseline that any pruning should beat."""

from dataclasses import dataclass
from typing import ClassVar

from covervlm.pruners.none import KeepAll


@dataclass(frozen=True)
class Resize(KeepAll):
    """The picture is scaled down before the tower sees it, until no more tokens than the budget come of it.

    Of those all are kept. The engine scales, for models whose tower takes pictures of any size.
    """

    scales_pictures: ClassVar[bool] = True
