"""LLaVA-1.5 with pruning, for vLLM."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PixtralVisionConfig
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce
from vllm.model_executor.models.clip import CLIPEncoderLayer, CLIPVisionModel
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

from covervlm.server.engines.vllm.plugin.model import PruningModel, pixels_of
from covervlm.server.engines.vllm.plugin.plan import Plan
from covervlm.server.engines.vllm.plugin.processor import PruningProcessor, with_pillow
from covervlm.server.models.base import ImageTokens
from covervlm.server.models.llava import cls_attention

TOWER_NAMES = WeightsMapper(
    orig_to_new_regex={
        re.compile(r"^(model\.)?vision_tower\.(?=(embeddings|encoder|pre_layrnorm|post_layernorm|head)\.)"): (
            "vision_tower.vision_model."
        )
    }
)
"""transformers 5.19 and later save CLIP towers without the `vision_model.` that vLLM expects."""


class PruningLlavaProcessor(PruningProcessor, LlavaMultiModalProcessor):
    pass


def build_processor(
    info: BaseProcessingInfo, dummy_inputs: BaseDummyInputsBuilder, **options: Any
) -> BaseMultiModalProcessor:
    """vLLM serves Pixtral checkpoints by the same class; those keep their own processor."""
    if isinstance(info.get_hf_config().vision_config, PixtralVisionConfig):
        return _build_llava_or_pixtral_hf_processor(info, dummy_inputs, **options)
    return PruningLlavaProcessor(info, dummy_inputs, **options)


@contextmanager
def _cls_attention(tower: CLIPVisionModel, layers: int) -> Iterator[list[Tensor]]:
    """Collects, for each run of a CLIP tower, its CLS token's attention to the patches in the penultimate layer.

    (B, patches), the mean over heads; only the CLS row is computed, from that layer's projections. layers: how many
    the checkpoint's tower has; vLLM leaves out those after the layer whose features are used.
    """
    seen: list[Tensor] = []

    def listen(layer: CLIPEncoderLayer, inputs: tuple[Tensor, ...]) -> None:
        """Hidden states are (B, 1 + patches, width); with tensor parallelism each rank has some of the heads."""
        attention = layer.self_attn
        qkv, _ = attention.qkv_proj(layer.layer_norm1(inputs[0]))
        query, key, _ = qkv.chunk(3, dim=-1)
        rows = cls_attention(query[:, 0], key, key.shape[-1] // attention.head_dim)
        if attention.tp_size > 1 and get_tensor_model_parallel_world_size() > 1:
            rows = tensor_model_parallel_all_reduce(rows.contiguous())
        seen.append(rows / attention.num_heads)

    hook = tower.vision_model.encoder.layers[layers - 2].register_forward_pre_hook(listen)
    try:
        yield seen
    finally:
        hook.remove()


class PruningLlavaTower(PruningModel):
    """How a LLaVA tower looks at images, of one or several crops each, and at the frames of clips."""

    def _look(self, images: Sequence[dict[str, Any]], plans: Sequence[Plan], cls_attention: bool) -> list[ImageTokens]:
        pixels = [pixels_of(image)[0] for image in images]
        crops = [tensor if tensor.dim() == 4 else tensor[None] for tensor in pixels]
        layers = self.config.vision_config.num_hidden_layers
        with ExitStack() as stack:
            seen = stack.enter_context(_cls_attention(self.vision_tower, layers)) if cls_attention else []
            features = self._image_pixels_to_features(self.vision_tower, torch.cat(crops))
        tokens = self.multi_modal_projector(features)
        sizes = [len(crop) for crop in crops]
        rows = [row.flatten() for row in seen[0].split(sizes)] if seen else [None] * len(sizes)
        architecture: Any = self.selections.architecture
        packed = [
            [architecture.packed(own, plan.shape) for own, plan in zip(both.split(sizes), plans, strict=True)]
            for both in (tokens, features)
        ]
        return [ImageTokens(*one) for one in zip(self._layouts(plans), *packed, rows, strict=True)]


@MULTIMODAL_REGISTRY.register_processor(
    build_processor, info=with_pillow(_build_llava_or_pixtral_hf_info), dummy_inputs=LlavaDummyInputsBuilder
)
class PruningLlava(PruningLlavaTower, LlavaForConditionalGeneration):
    """vLLM's LLaVA-1.5 that also takes pruned images."""

    hf_to_vllm_mapper = TOWER_NAMES | LlavaForConditionalGeneration.hf_to_vllm_mapper
