"""Qwen3-VL: Qwen2.5-VL with interleaved positions, and features of the tower's middle for deeper layers (DeepStack)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import pad

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.models.processor import NO_VIDEOS
from covervlm.server.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLAdapter


class Qwen3VL(Qwen2_5_VL):
    """Shape: (rows, columns) of merged patches. Clips, with the time in words between frames, are refused."""

    placeholder_fields = ("image_token_id",)

    @classmethod
    def problems(cls, config: Any) -> Iterator[str]:
        yield from super().problems(config)
        deep, layers = list(config.vision_config.deepstack_visual_indexes), config.vision_config.depth
        if not all(0 <= layer < layers for layer in deep) or sorted({*deep}) != deep:
            yield f"vision_config.deepstack_visual_indexes is {deep}; they should ascend, below the tower's {layers}"
        if len(deep) > (read := config.text_config.num_hidden_layers):
            yield f"vision_config.deepstack_visual_indexes has {len(deep)} layers for a language model that has {read}"


class Qwen3VLAdapter(Qwen2_5_VLAdapter):
    """Any transformers checkpoint of `Qwen3VLForConditionalGeneration`."""

    describes = Qwen3VL

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self.language_model = _DeepStack(model.model.language_model)
        self._layers = len(model.config.vision_config.deepstack_visual_indexes)

    def preprocess_video(self, frames: Sequence[Image], fps: float) -> Mapping[str, Any]:
        raise InvalidRequest(NO_VIDEOS, param="messages")

    def for_generate(self, embeddings: Tensor, positions: Tensor) -> dict[str, Tensor]:
        if self._layers and len(embeddings):
            raise InvalidRequest(
                "The model's deeper layers read more of an image than embeddings, which its `generate` takes from "
                "pixels alone; ask the model itself, which prunes both."
            )
        return super().for_generate(embeddings, positions)

    def _features(self, states: Tensor, grids: Tensor) -> Tensor:
        return states.float().unflatten(0, (-1, self.model.model.visual.spatial_merge_unit)).mean(dim=1)

    def _text(self, ids: Sequence[int]) -> Tensor:
        embeddings = self._embed(ids)
        return pad(embeddings, (0, self._layers * embeddings.shape[1]))


class _DeepStack(torch.nn.Module):
    """The language model, which finds in the further columns of an embedding what its first layers add to it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *, inputs_embeds: Tensor, **options: Any) -> Any:
        """inputs_embeds: (B, T, d), or (B, T, d + layers * d) with zeros for texts, which add nothing."""
        own, *deeper = inputs_embeds.split(self.model.config.hidden_size, dim=-1)
        if deeper:
            options["visual_pos_masks"] = torch.ones(own.shape[:2], dtype=torch.bool, device=own.device)
            options["deepstack_visual_embeds"] = [layer.flatten(0, 1) for layer in deeper]
        return self.model(inputs_embeds=own, **options)
