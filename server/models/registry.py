"""Architectures by the name in a checkpoint's config; their modules, and torch with them, are imported when needed."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from covervlm.server.models.unserved import REASONS

if TYPE_CHECKING:
    from covervlm.server.models.base import Adapter, Architecture

ARCHITECTURES: dict[str, tuple[str, str]] = {
    "LlavaForConditionalGeneration": ("covervlm.server.models.llava", "Llava"),
    "LlavaNextForConditionalGeneration": ("covervlm.server.models.llava_next", "LlavaNext"),
    "LlavaOnevisionForConditionalGeneration": ("covervlm.server.models.llava_onevision", "LlavaOnevision"),
    "InternVLForConditionalGeneration": ("covervlm.server.models.internvl", "InternVL"),
    "Qwen2_5_VLForConditionalGeneration": ("covervlm.server.models.qwen2_5_vl", "Qwen2_5_VL"),
    "Qwen3VLForConditionalGeneration": ("covervlm.server.models.qwen3_vl", "Qwen3VL"),
}
"""Module and NAME: the module holds `NAMEAdapter`, and one of the same name in vLLM's plugin, if any, `PruningNAME`."""


UNSERVED = {name: reason for name, reason in REASONS.items() if name not in ARCHITECTURES}
"""Reasons by architecture; a release of transformers with others is told by a test."""


def adapter_class(config: Any) -> "type[Adapter]":
    """The adapter for a model's configuration; ValueError for an unknown architecture, or settings not served."""
    names = config.architectures or []
    known = next((name for name in names if name in ARCHITECTURES), None)
    if known is None:
        why = next((f": {UNSERVED[name]}" for name in names if name in UNSERVED), "")
        told = ", ".join(names) or "unknown"
        raise ValueError(f"architecture {told} is not supported{why}; supported are {', '.join(ARCHITECTURES)}")
    from covervlm.server.models.checks import check_config  # imports torch

    module, name = ARCHITECTURES[known]
    cls: type[Adapter] = getattr(import_module(module), f"{name}Adapter")
    check_config(config, cls.describes)
    return cls


def architecture_of(config: Any) -> "Architecture":
    """What is known of the architecture of a model's configuration; ValueError for an unknown one."""
    return adapter_class(config).describes(config)
