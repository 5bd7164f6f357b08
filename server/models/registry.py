"""Architectures by the name in a checkpoint's config; adapters are imported when first needed."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from transformers import AutoConfig

from covervlm.server.models.base import Adapter

_ADAPTERS: dict[str, tuple[str, str]] = {
    "LlavaForConditionalGeneration": ("covervlm.server.models.llava", "LlavaAdapter"),
    "LlavaNextForConditionalGeneration": ("covervlm.server.models.llava_next", "LlavaNextAdapter"),
    "Qwen2_5_VLForConditionalGeneration": ("covervlm.server.models.qwen2_5_vl", "Qwen2_5_VLAdapter"),
}


@dataclass(frozen=True)
class Checkpoint:
    """Where the weights are and how to hold them; `device` and `dtype` may be "auto"."""

    path: str | Path
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False

    def resolved_device(self) -> torch.device:
        if self.device != "auto":
            return torch.device(self.device)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def resolved_dtype(self) -> torch.dtype | str:
        """A CPU computes half precision several times slower than float32, so "auto" means float32 there."""
        if self.dtype == "auto":
            return torch.float32 if self.resolved_device().type == "cpu" else "auto"
        dtype = getattr(torch, self.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"unknown dtype {self.dtype!r}; use auto, float32, bfloat16 or float16")
        return dtype


def load_adapter(checkpoint: Checkpoint) -> Adapter:
    """Load a checkpoint (local path or hub id, safetensors only) behind the adapter of its architecture.

    Raises ValueError for an architecture without an adapter, OSError for missing files.
    """
    config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=checkpoint.trust_remote_code)
    names = config.architectures or []
    known = next((name for name in names if name in _ADAPTERS), None)
    if known is None:
        raise ValueError(
            f"{checkpoint.path}: architecture {', '.join(names) or 'unknown'} is not supported; "
            f"supported are {', '.join(_ADAPTERS)}"
        )
    module, cls = _ADAPTERS[known]
    return getattr(import_module(module), cls).load(checkpoint)
