"""LLaVA-NeXT with pruning, for vLLM."""

from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from covervlm.server.engines.vllm.plugin.llava import TOWER_NAMES, PruningLlavaTower
from covervlm.server.engines.vllm.plugin.processor import PruningProcessor, with_pillow


class PruningLlavaNextProcessor(PruningProcessor, LlavaNextMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    PruningLlavaNextProcessor, info=with_pillow(LlavaNextProcessingInfo), dummy_inputs=LlavaDummyInputsBuilder
)
class PruningLlavaNext(PruningLlavaTower, LlavaNextForConditionalGeneration):
    """vLLM's LLaVA-NeXT that also takes pruned images."""

    hf_to_vllm_mapper = TOWER_NAMES | LlavaNextForConditionalGeneration.hf_to_vllm_mapper
