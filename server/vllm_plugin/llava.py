"""LLaVA-1.5 with pruning, for vLLM."""

import re
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PixtralVisionConfig
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    _build_llava_or_pixtral_hf_info,
    _build_llava_or_pixtral_hf_processor,
)
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import BaseDummyInputsBuilder, BaseMultiModalProcessor, BaseProcessingInfo

from covervlm.server.models.llava import viewed_area
from covervlm.server.vllm_plugin.layouts import Layout
from covervlm.server.vllm_plugin.model import ClsAttention, PruningModel
from covervlm.server.vllm_plugin.processor import Options, PruningProcessor
from covervlm.server.vllm_plugin.selection import TowerOutput

TOWER_NAMES = WeightsMapper(
    orig_to_new_regex={
        re.compile(r"^(model\.)?vision_tower\.(?=(embeddings|encoder|pre_layrnorm|post_layernorm|head)\.)"): (
            "vision_tower.vision_model."
        )
    }
)
"""transformers 5.19 and later save CLIP towers without the `vision_model.` that vLLM expects."""


class PruningLlavaProcessor(PruningProcessor, LlavaMultiModalProcessor):
    @property
    def placeholders(self) -> dict[str, int]:
        return {self.info.get_hf_processor().image_token: self.info.get_hf_config().image_token_index}

    @property
    def fixed_layout(self) -> Layout:
        return self.architecture.layouts((0, 0))

    def box(self, width: int, height: int) -> tuple[float, float, float, float] | None:
        return viewed_area(width, height, self.info.get_hf_processor().image_processor)

    def _shape(self, width: int, height: int, options: Options) -> tuple[int, int]:
        padded = getattr(self.info.get_hf_processor(**options).image_processor, "do_pad", False)
        return (width, height) if padded else (0, 0)


def build_processor(
    info: BaseProcessingInfo, dummy_inputs: BaseDummyInputsBuilder, **options: Any
) -> BaseMultiModalProcessor:
    """vLLM serves Pixtral checkpoints by the same class; those keep their own processor."""
    if isinstance(info.get_hf_config().vision_config, PixtralVisionConfig):
        return _build_llava_or_pixtral_hf_processor(info, dummy_inputs, **options)
    return PruningLlavaProcessor(info, dummy_inputs, **options)


class PruningLlavaTower(PruningModel):
    """How a LLaVA tower looks at images: `pixel_values` of one or several crops each."""

    def _look(self, images: Sequence[dict[str, Any]], cls_attention: bool) -> list[TowerOutput]:
        pixels = [image["pixel_values"][0] for image in images]
        crops = [tensor if tensor.dim() == 4 else tensor[None] for tensor in pixels]
        layers = self.config.vision_config.num_hidden_layers
        with ClsAttention(self.vision_tower, layers) if cls_attention else nullcontext() as attention:
            features = self._image_pixels_to_features(self.vision_tower, torch.cat(crops))
        tokens = self.multi_modal_projector(features)
        sizes = [len(crop) for crop in crops]
        rows: list[Tensor | None] = [None] * len(sizes)
        if attention is not None and attention.rows is not None:
            rows = [row.flatten() for row in attention.rows.split(sizes)]
        return [
            TowerOutput(token.flatten(0, 1), feature.flatten(0, 1), row)
            for token, feature, row in zip(tokens.split(sizes), features.split(sizes), rows, strict=True)
        ]


@MULTIMODAL_REGISTRY.register_processor(
    build_processor, info=_build_llava_or_pixtral_hf_info, dummy_inputs=LlavaDummyInputsBuilder
)
class PruningLlava(PruningLlavaTower, LlavaForConditionalGeneration):
    """vLLM's LLaVA-1.5 that also takes pruned images."""

    hf_to_vllm_mapper = TOWER_NAMES | LlavaForConditionalGeneration.hf_to_vllm_mapper
