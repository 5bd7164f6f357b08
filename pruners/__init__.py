"""What to keep: vision-token pruning methods behind one interface, one file each."""

from covervlm.pruners.base import Pruner, highest
from covervlm.pruners.inputs import PruneInput, Selection
from covervlm.pruners.objective import Objective
from covervlm.pruners.registry import get_pruner, pruner_names

__all__ = ["Objective", "PruneInput", "Pruner", "Selection", "get_pruner", "highest", "pruner_names"]
