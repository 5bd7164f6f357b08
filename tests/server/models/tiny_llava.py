"""Tiny LLaVA checkpoints of random weights, with the demo's tokenizer and template, saved as real ones are."""

from pathlib import Path

import torch
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from covervlm.server.demo import model_path

SIDE = 4  # patches along a crop: 32 pixels in patches of 8
_SIZES = {"size": {"shortest_edge": SIDE * 8}, "crop_size": {"height": SIDE * 8, "width": SIDE * 8}}


def save_tiny_llava(folder: Path) -> None:
    """LLaVA-1.5 with 16 patches an image, and a processor that pads to a square."""
    torch.manual_seed(0)
    processor = AutoProcessor.from_pretrained(model_path())
    tokenizer = processor.tokenizer
    config = LlavaConfig(
        vision_config=_vision(),
        text_config=_text(tokenizer, context=256),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=SIDE * SIDE,
    )
    _save(LlavaForConditionalGeneration(config), tokenizer, folder)
    processor.image_processor = LlavaImageProcessorPil(do_pad=True, **_SIZES)
    processor.patch_size = 8
    processor.save_pretrained(folder)


def save_tiny_llava_next(folder: Path, *, hidden_size: int = 48) -> None:
    """LLaVA-NeXT with 16 patches a crop and up to four tiles; hidden_size: of the language model, with four heads."""
    torch.manual_seed(0)
    demo = AutoProcessor.from_pretrained(model_path())
    tokenizer = demo.tokenizer
    pinpoints = [[32, 64], [64, 32], [64, 64], [32, 96], [96, 32]]
    config = LlavaNextConfig(
        vision_config=_vision(),
        text_config=_text(tokenizer, context=512, hidden_size=hidden_size),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
    )
    _save(LlavaNextForConditionalGeneration(config), tokenizer, folder)
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(image_grid_pinpoints=pinpoints, **_SIZES),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=demo.chat_template or tokenizer.chat_template,
    )
    processor.save_pretrained(folder)


def _vision() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE * 8,
        patch_size=8,
    )


def _text(tokenizer: PreTrainedTokenizerBase, *, context: int, hidden_size: int = 48) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    # Wide enough for an image to change the answer.
    torch.nn.init.normal_(model.model.multi_modal_projector.linear_2.weight, std=0.3)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
