"""Qwen2.5-VL with pruning, for vLLM: kept tokens keep the positions that they have in the unpruned prompt."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.platforms import current_platform

from covervlm.server.engines.vllm.plugin.model import PruningModel
from covervlm.server.engines.vllm.plugin.plan import FIELD, Plan
from covervlm.server.engines.vllm.plugin.processor import Options, PruningProcessor, with_pillow
from covervlm.server.models.base import ImageTokens, Layout
from covervlm.server.models.qwen2_5_vl import group_features

_CHANNELS = 5
"""Columns after an image's embeddings: 1 if it is pruned, then row and column of the token, each as two digits to
the base 256, which every float dtype holds exactly."""


class PruningQwen2_5_VLProcessor(PruningProcessor, Qwen2_5_VLMultiModalProcessor):
    def _shape(self, width: int, height: int, options: Options) -> tuple[int, int]:
        processor = self.info.get_image_processor(**options)
        size, _ = self.info._get_vision_info(
            image_width=width, image_height=height, image_processor=processor, mm_kwargs=options
        )
        vision = self.info.get_hf_config().vision_config
        pixels = vision.patch_size * vision.spatial_merge_size
        return size.height // pixels, size.width // pixels


@MULTIMODAL_REGISTRY.register_processor(
    PruningQwen2_5_VLProcessor, info=with_pillow(Qwen2_5_VLProcessingInfo), dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class PruningQwen2_5_VL(PruningModel, Qwen2_5_VLForConditionalGeneration):
    """vLLM's Qwen2.5-VL that also takes pruned images; clips are read whole.

    Which tokens are kept is known only after the tower ran, and so are their positions. vLLM's model runner corrects
    positions then, through an interface made for its own pruning of videos, which therefore cannot be used as well.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        multimodal = vllm_config.model_config.multimodal_config
        if multimodal.video_pruning_rate:
            raise ValueError("--video-pruning-rate and covervlm's pruning of images exclude each other")
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise ValueError(
                "vLLM corrects positions of pruned images on the first pipeline stage only: serve Qwen2.5-VL with "
                "--tensor-parallel-size, or without the covervlm plugin (VLLM_PLUGINS)"
            )
        # Asked by the model runner after loading. A partial, because configurations may be pickled.
        object.__setattr__(multimodal, "is_multimodal_pruning_enabled", partial(bool, True))
        if current_platform.is_cpu():  # whose model runner loads models in its own way, without asking
            from vllm.v1.worker.cpu_model_runner import CPUModelRunner

            CPUModelRunner.is_multimodal_pruning_enabled = property(lambda _: True, lambda *_: None)

    # Vision.

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """One (tokens, d + 5) tensor per image or clip."""
        width = self.config.text_config.hidden_size
        embeddings = super().embed_multimodal(**kwargs)
        return [e if e.shape[1] > width else nn.functional.pad(e, (0, _CHANNELS)) for e in embeddings]

    def _look(
        self, images: Sequence[dict[str, Any]], layouts: Sequence[Layout], cls_attention: bool
    ) -> list[ImageTokens]:
        visual = self.visual
        grids = torch.cat([image["image_grid_thw"] for image in images]).cpu()
        seen: list[Tensor] = []
        # vLLM bypasses the hooks of the merger itself, so the hook is on its first layer, which gets the same input.
        hook = visual.merger.ln_q.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            tokens = visual(torch.cat([image["pixel_values"] for image in images]), grid_thw=grids.tolist())
        finally:
            hook.remove()
        features = group_features(seen[0], grids, visual)
        sizes = [layout.total for layout in layouts]
        return [ImageTokens(*one) for one in zip(layouts, tokens.split(sizes), features.split(sizes), strict=True)]

    def _only(self, kwargs: dict[str, Any], wanted: Sequence[int]) -> dict[str, Any]:
        """The inputs of some of a batch's images; pixels are those of all images one after another."""
        grids = kwargs["image_grid_thw"]
        pixels = kwargs["pixel_values"].split(grids.prod(-1).tolist())
        return {
            "pixel_values": torch.cat([pixels[i] for i in wanted]),
            "image_grid_thw": grids[list(wanted)],
        }

    def _finished(self, tokens: Tensor, positions: Tensor, plan: Plan) -> Tensor:
        _, columns = plan.shape
        row, column = positions // columns, positions % columns
        channels = torch.stack([torch.ones_like(row), row // 256, row % 256, column // 256, column % 256], dim=1)
        return torch.cat([tokens, channels.to(tokens)], dim=1)

    def get_encoder_cudagraph_config(self) -> Any:
        """No CUDA graphs of the tower: they bypass `embed_multimodal`."""
        return replace(super().get_encoder_cudagraph_config(), modalities=[])

    # Positions.

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[MultiModalFeatureSpec]
    ) -> tuple[Tensor, int]:
        """Positions (3, T), and how far the next token's lies from T.

        Text has the positions of the unpruned prompt. Kept tokens stand at the image's first position until
        `recompute_mrope_positions` spreads them.
        """
        pieces: list[np.ndarray] = []
        read = position = 0
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            ((offset, times, rows, columns, factor),) = self.iter_mm_grid_thw([feature])
            pieces.append(np.arange(offset - read) + np.full((3, 1), position))
            position += offset - read
            grid = np.indices((times, rows, columns)).reshape(3, -1)
            grid[0] = (grid[0] * factor).astype(np.int64)
            packed = feature.data.get(FIELD)
            plan = None if packed is None else Plan.from_tensor(packed.data)
            pieces.append(np.full((3, plan.kept), position) if plan is not None and plan.prunes else grid + position)
            read = offset + pieces[-1].shape[1]
            position += int(grid.max()) + 1
        rest = len(input_tokens) - read
        pieces.append(np.arange(rest) + np.full((3, 1), position))
        return torch.from_numpy(np.concatenate(pieces, axis=1)), position + rest - len(input_tokens)

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """Embeddings without their channels, and the positions with this step's kept tokens where they belong.

        multimodal_embeddings: those of the placeholders from num_computed_tokens on, in order, possibly not all.
        """
        delta = int(mrope_positions.max()) + 1 - mrope_positions.shape[1]
        if not len(multimodal_embeddings):
            return [], mrope_positions, delta
        channels = torch.cat([embedding[:, -_CHANNELS:] for embedding in multimodal_embeddings])
        channels = channels.to(mrope_positions.device, torch.int64)
        ids = torch.as_tensor(input_ids, device=mrope_positions.device)
        media = torch.tensor([self.config.image_token_id, self.config.video_token_id], device=ids.device)
        slots = torch.isin(ids, media).nonzero().flatten()
        slots = slots[slots >= num_computed_tokens][: len(channels)]
        pruned = channels[:, 0] == 1
        slots, channels = slots[pruned], channels[pruned]
        positions = mrope_positions.clone()
        # An image's tokens all have its first position on the first axis, so that a second run changes nothing.
        positions[1, slots] = positions[0, slots] + channels[:, 1] * 256 + channels[:, 2]
        positions[2, slots] = positions[0, slots] + channels[:, 3] * 256 + channels[:, 4]
        return [embedding[:, :-_CHANNELS] for embedding in multimodal_embeddings], positions, delta
