"""The sampling that a checkpoint's generation_config.json recommends."""

from collections.abc import Mapping
from typing import Any

_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


def recommended(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that it sets, as vLLM takes them: whatever `do_sample` says, and no limit to the length."""
    return {name: value for name in _NAMES if (value := generation_config.get(name)) is not None}
