"""A checkpoint on disk or on the hub, loaded behind its architecture's adapter; safetensors only, and no code of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForImageTextToText

from covervlm.server.models.base import Adapter
from covervlm.server.models.checks import check_adapter
from covervlm.server.models.processor import Processor
from covervlm.server.models.registry import adapter_class


@dataclass(frozen=True)
class Checkpoint:
    """Where the weights are and how to hold them; `device` and `dtype` may be "auto"."""

    path: str | Path
    device: str = "auto"
    dtype: str = "auto"

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

    Raises ValueError for an architecture without an adapter and for parts that do not fit together, OSError for missing
    files or weights.
    """
    try:
        cls = adapter_class(AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False))
        processor = Processor.load(checkpoint.path)
        adapter = cls(_load_model(checkpoint), processor)
        check_adapter(adapter)
    except (ValueError, StrictDataclassError) as error:
        raise ValueError(f"{checkpoint.path}: {error}") from error
    return adapter


def _load_model(checkpoint: Checkpoint) -> Any:
    """On its device, in evaluation mode. OSError where weights are missing, which transformers would make up."""
    load: Any = AutoModelForImageTextToText.from_pretrained
    model, loading = load(
        checkpoint.path,
        dtype=checkpoint.resolved_dtype(),
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if missing := sorted(loading["missing_keys"]):
        raise OSError(f"{checkpoint.path}: {len(missing)} weights of the model are missing, e.g. {missing[0]}")
    return model.to(checkpoint.resolved_device()).eval()
