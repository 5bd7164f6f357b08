"""LLaVA-OneVision with pruning, for vLLM."""

from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from covervlm.server.engines.vllm.plugin.llava import TOWER_NAMES, PruningLlavaTower
from covervlm.server.engines.vllm.plugin.processor import PruningProcessor, with_pillow


class PruningLlavaOnevisionProcessor(PruningProcessor, LlavaOnevisionMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    PruningLlavaOnevisionProcessor,
    info=with_pillow(LlavaOnevisionProcessingInfo),
    dummy_inputs=LlavaOnevisionDummyInputsBuilder,
)
class PruningLlavaOnevision(PruningLlavaTower, LlavaOnevisionForConditionalGeneration):
    """vLLM's LLaVA-OneVision that also takes pruned images and clips."""

    hf_to_vllm_mapper = TOWER_NAMES | LlavaOnevisionForConditionalGeneration.hf_to_vllm_mapper
