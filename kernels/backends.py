"""Which implementation of a kernel runs: by name, or the fastest one that the tensors' device has."""

import logging
import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch

log = logging.getLogger(__name__)

_MODULES = {
    "affinity": {
        "torch": "covervlm.kernels.affinity_torch",
        "cpu": "covervlm.kernels.affinity_cpu",
        "triton": "covervlm.kernels.affinity_triton",
    },
    "greedy": {
        "torch": "covervlm.kernels.greedy_torch",
        "numba": "covervlm.kernels.greedy_numba",
        "triton": "covervlm.kernels.greedy_triton",
    },
}

_DEVICE = {"numba": "cpu", "cpu": "cpu", "triton": "cuda"}
"""The device type that a backend is made for; the others run anywhere."""

_PACKAGE = {"numba": "numba", "triton": "triton"}
"""The package that a backend needs besides torch."""


@cache
def load_backend(kernel: Literal["affinity", "greedy"], name: str, device: torch.device) -> Any:
    """The module of `kernel` called `name`, imported; "auto" prefers one made for `device` to one that runs anywhere.

    Each answer is found once per process. Raises ValueError for a name that does not exist or that cannot run on
    `device`.
    """
    modules = _MODULES[kernel]
    if name == "auto":
        # Triton under torch's ROCm build is untested, and half of the kernels' options mean nothing there.
        made_for_it = [] if torch.version.hip else [b for b in modules if _DEVICE.get(b) == device.type]
        for backend in filter(_installed, made_for_it):
            try:
                return import_module(modules[backend])
            except ImportError as error:  # numba, for one, refuses releases of numpy that it does not know
                log.warning("%s cannot be used, plain torch runs in its place: %s", backend, error)
        name = "torch"
    if name not in modules:
        raise ValueError(f"backend must be auto or one of {', '.join(modules)}, got {name!r}")
    interpreted = name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if _DEVICE.get(name, device.type) != device.type and not interpreted:
        raise ValueError(f"backend {name!r} works on {_DEVICE[name]} tensors, got tensors on {device}")
    return import_module(modules[name])


def _installed(backend: str) -> bool:
    return backend not in _PACKAGE or find_spec(_PACKAGE[backend]) is not None
