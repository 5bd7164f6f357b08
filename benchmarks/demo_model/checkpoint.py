"""Write the trained models as transformers checkpoints, weights in float16."""

import json
from pathlib import Path

from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    GenerationConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from demo_model.drawing import PATCH, SIZE
from demo_model.tokenization import CHAT_TEMPLATE


def _image_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})


def _save_processor(processor: ProcessorMixin, folder: Path) -> None:
    """Save what transformers 5 reads, and preprocessor_config.json for the releases before it."""
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors makes its file readable by the owner alone


def save_llava(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=40,
    )
    model.half().save_pretrained(folder)
    processor = LlavaProcessor(
        _image_processor(),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    _save_processor(processor, folder)


def save_clip(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.half().save_pretrained(folder)
    _save_processor(CLIPProcessor(_image_processor(), tokenizer), folder)
