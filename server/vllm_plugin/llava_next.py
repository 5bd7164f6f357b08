"""LLaVA-NeXT with pruning, for vLLM."""

from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from covervlm.server.vllm_plugin.llava import TOWER_NAMES, PruningLlavaTower
from covervlm.server.vllm_plugin.processor import Options, PruningProcessor


class PruningLlavaNextProcessor(PruningProcessor, LlavaNextMultiModalProcessor):
    @property
    def placeholders(self) -> dict[str, int]:
        return {self.info.get_hf_processor().image_token: self.info.get_hf_config().image_token_index}

    def _shape(self, width: int, height: int, options: Options) -> tuple[int, int]:
        return width, height


@MULTIMODAL_REGISTRY.register_processor(
    PruningLlavaNextProcessor, info=LlavaNextProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class PruningLlavaNext(PruningLlavaTower, LlavaNextForConditionalGeneration):
    """vLLM's LLaVA-NeXT that also takes pruned images."""

    hf_to_vllm_mapper = TOWER_NAMES | LlavaNextForConditionalGeneration.hf_to_vllm_mapper
