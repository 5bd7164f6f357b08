"""Qwen3-VL: Qwen2.5-VL with interleaved positions, times between a clip's moments, and DeepStack for deeper layers."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.models.base import Layout
from covervlm.server.models.clip_text import ClipText
from covervlm.server.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLAdapter


class Qwen3VL(Qwen2_5_VL):
    """Shape: Qwen2.5-VL's. The moments of a clip stand apart in a prompt, each after its time in words."""

    @classmethod
    def problems(cls, config: Any) -> Iterator[str]:
        yield from super().problems(config)
        deep, layers = list(config.vision_config.deepstack_visual_indexes), config.vision_config.depth
        if not all(0 <= layer < layers for layer in deep) or sorted({*deep}) != deep:
            yield f"vision_config.deepstack_visual_indexes is {deep}; they should ascend, below the tower's {layers}"
        if len(deep) > (read := config.text_config.num_hidden_layers):
            yield f"vision_config.deepstack_visual_indexes has {len(deep)} layers for a language model that has {read}"

    def _layout(self, shape: tuple[int, ...]) -> Layout:
        layout = super()._layout(shape)
        return replace(layout, slots=len(layout.parts))

    def clip_text(self, tokenizer: Any, image_processor: Any) -> ClipText:
        """Within a clip's markers each moment has its time and its own markers."""
        together = image_processor.temporal_patch_size
        start, end = (getattr(tokenizer, f"vision_{side}_token", f"<|vision_{side}|>") for side in ("start", "end"))
        video = tokenizer.convert_ids_to_tokens(self.config.video_token_id)

        def moments(frames: int, fps: float) -> Iterator[str]:
            for first in range(0, frames, together):
                last = min(first + together, frames) - 1
                yield f"<{(first / fps + last / fps) / 2:.1f} seconds>{start}{video}{end}"

        return ClipText(video, moments)


class Qwen3VLAdapter(Qwen2_5_VLAdapter):
    """Any transformers checkpoint of `Qwen3VLForConditionalGeneration`."""

    describes = Qwen3VL

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self.language_model = _DeepStack(model.model.language_model)
        self._layers = len(model.config.vision_config.deepstack_visual_indexes)

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

    @property
    def layers(self) -> Any:
        return self.model.layers

    def forward(self, *, inputs_embeds: Tensor, **options: Any) -> Any:
        """inputs_embeds: (B, T, d), or (B, T, d + layers * d) with zeros for texts, which add nothing."""
        own, *deeper = inputs_embeds.split(self.model.config.hidden_size, dim=-1)
        if deeper:
            options["visual_pos_masks"] = torch.ones(own.shape[:2], dtype=torch.bool, device=own.device)
            options["deepstack_visual_embeds"] = [layer.flatten(0, 1) for layer in deeper]
        return self.model(inputs_embeds=own, **options)
