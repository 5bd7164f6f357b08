"""Every pruning method by name; a method's module is imported when it is first asked for."""

from functools import lru_cache
from importlib import import_module
from typing import Any

from covervlm.pruners.base import Pruner

_METHODS: dict[str, tuple[str, str]] = {
    "mmtok": ("covervlm.pruners.coverage", "MMTok"),
    "vision_coverage": ("covervlm.pruners.coverage", "VisionCoverage"),
    "text_coverage": ("covervlm.pruners.coverage", "TextCoverage"),
    "divprune": ("covervlm.pruners.divprune", "DivPrune"),
    "divprune_cen": ("covervlm.pruners.cen", "DivPruneCen"),
    "cls_attention": ("covervlm.pruners.cls_attention", "CLSAttention"),
    "cdpruner": ("covervlm.pruners.cdpruner", "CDPruner"),
    "cdpruner_cen": ("covervlm.pruners.cen", "CDPrunerCen"),
    "scope": ("covervlm.pruners.scope", "Scope"),
    "holov": ("covervlm.pruners.holov", "HoloV"),
    "random": ("covervlm.pruners.random", "Random"),
    "uniform": ("covervlm.pruners.uniform", "Uniform"),
    "none": ("covervlm.pruners.none", "KeepAll"),
}


def pruner_names() -> list[str]:
    """Names that `get_pruner` accepts, in the order in which they are documented."""
    return list(_METHODS)


def nested_pruner_names() -> list[str]:
    """Names of the methods that take a coverage budget: those whose picks have an order."""
    return [name for name in _METHODS if _method(name).nested]


@lru_cache(maxsize=256, typed=True)
def get_pruner(name: str, **params: Any) -> Pruner:
    """The method called `name` with its parameters, all of them hashable; equal calls share one frozen instance.

    Raises ValueError for a name or a parameter that does not exist, or for a value that the method cannot take.
    """
    cls = _method(name)
    try:
        return cls(**params)
    except TypeError as error:
        raise ValueError(f"pruning method {name!r}: {error}") from None


def _method(name: str) -> type[Pruner]:
    if name not in _METHODS:
        raise ValueError(f"unknown pruning method {name!r}; choose one of {', '.join(_METHODS)}")
    module, cls = _METHODS[name]
    method: type[Pruner] = getattr(import_module(module), cls)
    return method
