"""Qwen2.5-VL with pruning, for vLLM."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec

from covervlm.server.engines.vllm.plugin.mrope import Grids, PruningQwen, QwenProcessor
from covervlm.server.engines.vllm.plugin.plan import Plan
from covervlm.server.engines.vllm.plugin.processor import with_pillow
from covervlm.server.models.base import ImageTokens
from covervlm.server.models.qwen2_5_vl import group_features


class PruningQwen2_5_VLProcessor(QwenProcessor, Qwen2_5_VLMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    PruningQwen2_5_VLProcessor, info=with_pillow(Qwen2_5_VLProcessingInfo), dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class PruningQwen2_5_VL(PruningQwen, Qwen2_5_VLForConditionalGeneration):
    """vLLM's Qwen2.5-VL that also takes pruned images and clips."""

    @property
    def _width(self) -> int:
        width: int = self.config.text_config.hidden_size
        return width

    def _look(self, images: Sequence[dict[str, Any]], plans: Sequence[Plan], cls_attention: bool) -> list[ImageTokens]:
        tokens, seen, grids = self._run_tower(images, self.visual.merger.ln_q)
        features = group_features(seen, grids, self.visual)
        layouts = self._layouts(plans)
        sizes = [layout.total for layout in layouts]
        return [ImageTokens(*one) for one in zip(layouts, tokens.split(sizes), features.split(sizes), strict=True)]

    def _moments(self, plan: Plan) -> Tensor:
        vision = self.config.vision_config
        # In single precision, as transformers does it, before it is cut to whole numbers.
        interval = vision.tokens_per_second * torch.tensor(vision.temporal_patch_size / plan.fps)
        return (torch.arange(plan.shape[0]) * interval).long()

    def _grids(self, input_tokens: list[int], feature: MultiModalFeatureSpec, plan: Plan | None) -> Grids:
        for offset, times, rows, columns, factor in self.iter_mm_grid_thw([feature]):
            grid = np.indices((times, rows, columns)).reshape(3, times, -1)
            if plan is not None and plan.frames:
                grid[0] = self._moments(plan).numpy()[:, None]
            else:
                grid[0] = (grid[0] * factor).astype(np.int64)
            yield offset, grid, grid[0].size if plan is None else plan.kept
