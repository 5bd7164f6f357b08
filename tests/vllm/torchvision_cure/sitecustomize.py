"""Lets torchvision be imported beside a CPU build of torch that does not match its binaries; for tests alone.

Such a torchvision cannot load its compiled operators and then fails on the missing schema of `nms`. Nothing here calls
that operator, so declaring the schema before torchvision is imported is enough.
"""

import sys
from collections.abc import Sequence
from types import ModuleType

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept = []


class DeclareSchemas:
    """The first to be asked for torchvision: declares the schemas, then lets the import go its way."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(operator + _SIGNATURE)
            _kept.append(library)


sys.meta_path.insert(0, DeclareSchemas())
