"""InternVL3 with pruning, for vLLM; clips are read whole."""

from collections.abc import Sequence
from typing import Any

import torch
from vllm.model_executor.models.interns1 import (
    InternS1DummyInputsBuilder,
    InternS1ForConditionalGeneration,
    InternS1MultiModalProcessor,
    InternS1ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from covervlm.server.engines.vllm.plugin.model import PruningModel
from covervlm.server.engines.vllm.plugin.plan import Plan
from covervlm.server.engines.vllm.plugin.processor import PruningProcessor, with_pillow
from covervlm.server.models.base import ImageTokens


class PruningInternVLProcessor(PruningProcessor, InternS1MultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    PruningInternVLProcessor, info=with_pillow(InternS1ProcessingInfo), dummy_inputs=InternS1DummyInputsBuilder
)
class PruningInternVL(PruningModel, InternS1ForConditionalGeneration):
    """vLLM's class for transformers' InternVL, which also takes pruned images."""

    def _look(self, images: Sequence[dict[str, Any]], plans: Sequence[Plan], cls_attention: bool) -> list[ImageTokens]:
        pixels = [image["pixel_values"] for image in images]
        states = self.vision_tower(pixel_values=torch.cat(pixels))[:, 1:]
        side = int(states.shape[1] ** 0.5)
        tokens = self.multi_modal_projector(
            self.pixel_shuffle(states.unflatten(1, (side, side)), scale_factor=self.downsample_ratio).flatten(1, 2)
        )
        sizes = [len(one) for one in pixels]
        architecture: Any = self.selections.architecture
        outputs = (tokens, architecture.averaged(states))
        flat = [[crops.flatten(0, 1) for crops in output.split(sizes)] for output in outputs]
        return [ImageTokens(*one) for one in zip(self._layouts(plans), *flat, strict=True)]

    def _only(self, kwargs: dict[str, Any], wanted: Sequence[int]) -> dict[str, Any]:
        """The inputs of some of a batch's images; crops are those of all images one after another."""
        crops = kwargs["image_num_patches"]
        pixels = kwargs["pixel_values"].split(crops.tolist())
        return kwargs | {
            "pixel_values": torch.cat([pixels[i] for i in wanted]),
            "image_num_patches": crops[list(wanted)],
        }
