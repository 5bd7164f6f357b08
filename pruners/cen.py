"""Cen-Prune: the diversity methods on centred features, distinctive tokens first (arXiv 2608.30263)."""

from dataclasses import dataclass
from typing import ClassVar

from covervlm.pruners.cdpruner import CDPruner
from covervlm.pruners.divprune import DivPrune
from covervlm.pruners.similarity import View, centred


@dataclass(frozen=True)
class DivPruneCen(DivPrune):
    """DivPrune whose distances are of centred tokens, times the distinctiveness of the candidate."""

    view: ClassVar[View] = staticmethod(centred)


@dataclass(frozen=True)
class CDPrunerCen(CDPruner):
    """CDPruner whose similarities are of centred tokens, and whose relevance is times their distinctiveness."""

    view: ClassVar[View] = staticmethod(centred)
