"""Reports at start checkpoints that would load, and then fail on every image or give answers that mean nothing."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from PIL.Image import new

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import ImagePart, Message
from covervlm.server.models.base import Adapter, Architecture

_ATTENTION = {"full_attention", "sliding_attention"}
_POSITIONS = {"default", "dynamic", "linear", "llama3", "yarn"}
"""Of which dynamic ones are the default's within the context, beyond which nothing is read."""


def check_config(config: Any, architecture: type[Architecture]) -> None:
    """ValueError, with the field and the reason, for a configuration that no engine can serve."""
    if problem := next(chain(_problems(config), architecture.problems(config)), None):
        raise ValueError(problem)


def check_adapter(adapter: Adapter) -> None:
    """One small picture from the chat template to the language model's input; ValueError where its parts do not fit."""
    picture = new("RGB", (96, 64), "gray")
    try:
        ids = adapter.tokenize((Message("user", (ImagePart(picture, ""), "What is it?")),))
    except InvalidRequest as error:
        raise ValueError(str(error)) from None
    pinpoints = getattr(adapter.model.config, "image_grid_pinpoints", None)
    if pinpoints is not None and pinpoints != list(map(list, adapter.chat.image_processor.image_grid_pinpoints)):
        raise ValueError("image_grid_pinpoints of the image processor and of the model are not the same")
    try:
        [image] = adapter.encode([adapter.preprocess(picture)])
        every = torch.cat([part.positions for part in image.layout.parts]).sort().values
        adapter.assemble(ids, [image], [every])
    except Exception as error:
        raise ValueError(f"the image processor and the model do not fit together: {error}") from error


def _problems(config: Any) -> Iterator[str]:
    if not config.return_dict:
        yield "return_dict is false; the server reads the model's outputs by their names"
    text = config.get_text_config()
    if other := set(getattr(text, "layer_types", None) or ()) - _ATTENTION:
        yield f"text_config.layer_types has {', '.join(sorted(other))}; supported are {', '.join(sorted(_ATTENTION))}"
    rope = getattr(text, "rope_parameters", None) or {}
    if (kind := rope.get("rope_type", "default")) not in _POSITIONS:
        yield f"text_config.rope_parameters has the type {kind}; supported are {', '.join(sorted(_POSITIONS))}"
