"""What is particular to one architecture when its images are pruned inside vLLM."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import CLIPVisionConfig

from covervlm.pruners.question import all_words, visual_words
from covervlm.server.models.llava import LlavaAdapter
from covervlm.server.models.qwen2_5_vl import Qwen2_5_VLAdapter
from covervlm.server.vllm_plugin.layouts import GridLayouts, Layouts, SquareLayouts, TiledLayouts


@dataclass(frozen=True)
class Architecture:
    """Layouts of its images, parameters of the pruning objective, and whether its tower has a CLS token.

    every_word: whether all words of a question guide the selection, and not only those that can name what is visible.
    """

    layouts: Layouts
    pruner_params: Mapping[str, float]
    has_cls_token: bool
    every_word: bool = False

    def words(self, question: str) -> list[str]:
        if not self.every_word:
            return visual_words(question)
        return all_words(f"Question: {question}") if question.strip() else []


def architecture_of(config: Any) -> Architecture:
    """The architecture of a model's configuration."""
    if config.model_type == "qwen2_5_vl":
        return Architecture(GridLayouts(), Qwen2_5_VLAdapter.pruner_params, has_cls_token=False, every_word=True)
    layouts = TiledLayouts(config) if config.model_type == "llava_next" else SquareLayouts(config)
    cls = isinstance(config.vision_config, CLIPVisionConfig) and config.vision_feature_select_strategy == "default"
    return Architecture(layouts, LlavaAdapter.pruner_params, cls)
