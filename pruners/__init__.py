"""What to keep: vision-token pruning methods behind one interface, one file each."""

from covervlm.pruners.base import Objective, PruneInput, Pruner, Selection, highest
from covervlm.pruners.registry import get_pruner, pruner_names

__all__ = ["Objective", "PruneInput", "Pruner", "Selection", "get_pruner", "highest", "pruner_names"]
