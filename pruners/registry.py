"""Every pruning method by name, ours and installed ones; its module is imported when it is first asked for."""

from functools import cache, lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from covervlm.pruners.base import Pruner

GROUP = "covervlm.pruners"
"""Entry points of this group are methods of other packages: `name = "module:Class"`."""

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
    "resize": ("covervlm.pruners.resize", "Resize"),
    "none": ("covervlm.pruners.none", "KeepAll"),
}


def pruner_names() -> list[str]:
    """Names that `get_pruner` accepts, in the order in which they are documented, installed ones last by name."""
    return [*_METHODS, *_installed()]


@lru_cache(maxsize=256, typed=True)
def get_pruner(name: str, **params: Any) -> Pruner:
    """The method called `name` with its parameters, all of them hashable; equal calls share one frozen instance.

    Raises ValueError for a name or a parameter that does not exist, or for a value that the method cannot take.
    """
    cls = pruner_class(name)
    try:
        return cls(**params)
    except TypeError as error:
        raise ValueError(f"pruning method {name!r}: {error}") from None


def pruner_class(name: str) -> type[Pruner]:
    """The method's class; ValueError where there is none of that name, or an installed one that cannot be used."""
    if name in _METHODS:
        module, cls = _METHODS[name]
        method: type[Pruner] = getattr(import_module(module), cls)
        return method
    if name in _installed():
        return _loaded(_installed()[name])
    raise ValueError(f"unknown pruning method {name!r}; choose one of {', '.join(pruner_names())}")


@cache
def _installed() -> dict[str, EntryPoint]:
    """Methods of other packages. None can take the place of one of ours."""
    found = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return {point.name: point for point in found if point.name not in _METHODS}


def _loaded(point: EntryPoint) -> type[Pruner]:
    package = point.dist.name if point.dist is not None else "a package"
    try:
        method = point.load()
    except Exception as error:  # whatever another's module does when it is imported
        raise ValueError(f"pruning method {point.name!r} of {package} cannot be loaded: {error}") from error
    if not (isinstance(method, type) and issubclass(method, Pruner)):
        raise ValueError(f"pruning method {point.name!r} of {package} is {point.value}, which is no Pruner")
    return method
