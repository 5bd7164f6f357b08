"""Which implementation of a kernel runs: by name, or the fastest one that the tensors' device has."""

import os
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

_DEVICE = {"numba": "cpu", "cpu": "cpu", "triton": "cuda"}
"""The device type that a backend is made for; the others run anywhere."""

_PACKAGE = {"numba": "numba", "triton": "triton"}
"""The package that a backend needs besides torch."""


def load_backend(modules: Mapping[str, str], name: str, device: torch.device) -> Any:
    """The module in `modules` called `name`, imported; "auto" prefers one made for `device` to one that runs anywhere.

    Raises ValueError for a name that does not exist or that cannot run on `device`.
    """
    if name == "auto":
        made_for_it = (b for b in modules if _DEVICE.get(b) == device.type and _installed(b))
        # Triton under torch's ROCm build is untested, and half of the kernels' options mean nothing there.
        name = "torch" if torch.version.hip else next(made_for_it, "torch")
    if name not in modules:
        raise ValueError(f"backend must be auto or one of {', '.join(modules)}, got {name!r}")
    interpreted = name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if _DEVICE.get(name, device.type) != device.type and not interpreted:
        raise ValueError(f"backend {name!r} works on {_DEVICE[name]} tensors, got tensors on {device}")
    return import_module(modules[name])


def _installed(backend: str) -> bool:
    return backend not in _PACKAGE or find_spec(_PACKAGE[backend]) is not None
