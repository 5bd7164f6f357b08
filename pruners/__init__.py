"""What to keep: vision-token pruning methods behind one interface, one file each."""

from covervlm.pruners.base import PruneInput, Pruner, Selection
from covervlm.pruners.registry import get_pruner, pruner_names

__all__ = ["PruneInput", "Pruner", "Selection", "get_pruner", "pruner_names"]
