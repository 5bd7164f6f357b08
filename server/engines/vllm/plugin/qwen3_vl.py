"""Qwen3-VL with pruning, for vLLM: what its deeper layers add to a token goes with it (DeepStack)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec

from covervlm.server.engines.vllm.plugin.mrope import Grids, PruningQwen, QwenProcessor
from covervlm.server.engines.vllm.plugin.plan import Plan
from covervlm.server.engines.vllm.plugin.processor import with_pillow
from covervlm.server.models.base import ImageTokens


class PruningQwen3VLProcessor(QwenProcessor, Qwen3VLMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    PruningQwen3VLProcessor, info=with_pillow(Qwen3VLProcessingInfo), dummy_inputs=Qwen3VLDummyInputsBuilder
)
class PruningQwen3VL(PruningQwen, Qwen3VLForConditionalGeneration):
    """vLLM's Qwen3-VL that also takes pruned images and clips."""

    @property
    def _width(self) -> int:
        width: int = self.visual_dim + self.multiscale_dim
        return width

    def _look(self, images: Sequence[dict[str, Any]], plans: Sequence[Plan], cls_attention: bool) -> list[ImageTokens]:
        output, seen, _ = self._run_tower(images, self.visual.merger.norm)
        features = seen.float().reshape(len(output), self.visual.spatial_merge_size**2, -1).mean(dim=1)
        tokens, deeper = output.split([self.visual_dim, self.multiscale_dim], dim=1)
        layouts = self._layouts(plans)
        sizes = [layout.total for layout in layouts]
        looked = [ImageTokens(*one) for one in zip(layouts, tokens.split(sizes), features.split(sizes), strict=True)]
        if not self.multiscale_dim:
            return looked
        return [replace(image, deeper=more) for image, more in zip(looked, deeper.split(sizes), strict=True)]

    def _moments(self, plan: Plan) -> Tensor:
        """Each moment of a clip has a place of its own in the prompt."""
        return torch.zeros(plan.shape[0], dtype=torch.int64)

    def _grids(self, input_tokens: list[int], feature: MultiModalFeatureSpec, plan: Plan | None) -> Grids:
        config = self.config
        frames = self._iter_mm_grid_hw(
            input_tokens,
            [feature],
            video_token_id=config.video_token_id,
            vision_start_token_id=config.vision_start_token_id,
            vision_end_token_id=config.vision_end_token_id,
            spatial_merge_size=config.vision_config.spatial_merge_size,
        )
        moments = plan.shape[0] if plan is not None and plan.frames else 1
        for offset, rows, columns, _ in frames:
            grid = np.indices((1, rows, columns)).reshape(3, 1, -1)
            yield offset, grid, grid[0].size if plan is None else plan.kept // moments
