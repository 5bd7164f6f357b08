"""A Qwen2.5-VL with random weights whose language model dominates, as `random_llava` is a LLaVA: for speed alone.

Files and tokenizer are those of the tests' zoo, which needs `make .venv-zoo/.ready`. Pictures are scaled up to the 576
vision tokens that the LLaVA has.
"""

from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedModel, Qwen2_5_VLForConditionalGeneration

from tests.zoo.checkpoints import ZOO

_PIXELS = (24 * 28) ** 2


def _larger(tokenizer: Tokenizer, hidden_size: int) -> PreTrainedModel:
    config = ZOO["qwen2.5-vl"].model(tokenizer, 64).config
    config.text_config.update(
        {
            "hidden_size": hidden_size,
            "intermediate_size": 2816,
            "num_hidden_layers": 12,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "layer_types": ["full_attention"] * 12,
            "initializer_range": 0.02,
            "tie_word_embeddings": False,
            "max_position_embeddings": 4096,
        }
    )
    config.text_config.rope_parameters["mrope_section"] = [8, 12, 12]
    config.vision_config.update(
        {
            "depth": 6,
            "hidden_size": 384,
            "intermediate_size": 1024,
            "num_heads": 6,
            "out_hidden_size": hidden_size,
            "fullatt_block_indexes": [2, 5],
            "initializer_range": 0.02,
        }
    )
    config.tie_word_embeddings = False
    return Qwen2_5_VLForConditionalGeneration(config)


def save_random_qwen(folder: Path) -> Path:
    """Write the checkpoint in float32."""
    exhibit = ZOO["qwen2.5-vl"]
    pictures = exhibit.files["preprocessor_config.json"] | {"min_pixels": _PIXELS, "max_pixels": _PIXELS}
    folder.mkdir(parents=True, exist_ok=True)
    files = {**exhibit.files, "preprocessor_config.json": pictures}
    exhibit = replace(exhibit, model=_larger, files=files, template_file="chat_template.jinja")
    exhibit.save(folder, hidden_size=1024)
    return folder
