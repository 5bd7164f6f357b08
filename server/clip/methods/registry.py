"""Every CLIP method by kind and name; a method's module, and with it torch, is imported when it is first asked for."""

from importlib import import_module
from typing import Any, Literal

Kind = Literal["fit", "train", "choose", "project", "stream", "group", "explain"]
"""By the contract `Fit`: classifiers from unlabelled images, from labels by one method or the best, and projections;
then the other contracts."""

_METHODS: dict[Kind, dict[str, tuple[str, str]]] = {
    "fit": {
        "inmap": ("covervlm.server.clip.methods.inmap", "InMaP"),
    },
    "train": {
        "linear": ("covervlm.server.clip.methods.linear", "Linear"),
        "sea": ("covervlm.server.clip.methods.sea", "SeA"),
        "tes": ("covervlm.server.clip.methods.tes", "TeS"),
        "margin": ("covervlm.server.clip.methods.margin", "Margin"),
        "text_mixup": ("covervlm.server.clip.methods.text_mixup", "TextMixup"),
        "groups": ("covervlm.server.clip.methods.groups", "Groups"),
        "mlp": ("covervlm.server.clip.methods.mlp", "MLP"),
    },
    "choose": {
        "auto": ("covervlm.server.clip.choice", "Auto"),
    },
    "project": {
        "soft_triple": ("covervlm.server.clip.methods.soft_triple", "SoftTriple"),
        "coins": ("covervlm.server.clip.methods.coins", "CoIns"),
        "kda": ("covervlm.server.clip.methods.kda", "KDA"),
    },
    "stream": {
        "onzeta": ("covervlm.server.clip.methods.onzeta", "OnZeta"),
        "coke": ("covervlm.server.clip.methods.coke", "CoKe"),
    },
    "group": {
        "multi_map": ("covervlm.server.clip.methods.multi_map", "MultiMaP"),
        "multi_sub": ("covervlm.server.clip.methods.multi_sub", "MultiSub"),
        "clip_kmeans": ("covervlm.server.clip.methods.clip_kmeans", "ClipKMeans"),
        "coke": ("covervlm.server.clip.methods.coke", "CoKeGroups"),
    },
    "explain": {
        "openbox": ("covervlm.server.clip.methods.openbox", "OpenBox"),
    },
}


def method_names(kind: Kind) -> list[str]:
    """Names that `method_class` accepts, the default first."""
    return list(_METHODS[kind])


def method_class(kind: Kind, name: str) -> Any:
    """The frozen dataclass of a method's parameters; ValueError for a name that does not exist."""
    if name not in _METHODS[kind]:
        raise ValueError(f"unknown method {name!r}; choose one of {', '.join(_METHODS[kind])}")
    module, cls = _METHODS[kind][name]
    return getattr(import_module(module), cls)
