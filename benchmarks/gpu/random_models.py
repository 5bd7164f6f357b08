"""LLaVA-1.5 and LLaVA-NeXT of any size with random float16 weights, made on the device itself.

Weights are drawn where they stay: 26 GB for 13B, of which none passes through the CPU's memory or a disk.
"""

from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from covervlm.server.demo import model_path
from covervlm.server.models.base import Adapter
from covervlm.server.models.processor import Processor
from covervlm.server.models.registry import adapter_class
from gpu.sizes import Shape


def random_adapter(shape: Shape, device: torch.device) -> Adapter:
    """The model behind its adapter, in float16, with the demo's tokenizer and template."""
    processor = Processor.load(model_path())
    processor.image_processor = _image_processor(shape)
    config = _configuration(shape, processor.tokenizer.convert_tokens_to_ids("<image>"))
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float16).eval()
    return adapter_class(config)(model, processor)


def image_side(shape: Shape) -> int:
    """Pixels along a square image of which the model makes all of its tokens: one crop, or five with tiles."""
    return shape.side * (2 if shape.tiles else 1)


def vision_tokens(shape: Shape) -> int:
    return (shape.side // 14) ** 2 * (5 if shape.tiles else 1)


def _configuration(shape: Shape, image_token: int) -> Any:
    parts = {
        "vision_config": CLIPVisionConfig(
            hidden_size=shape.tower_width,
            intermediate_size=shape.tower_mlp,
            num_hidden_layers=shape.tower_layers,
            num_attention_heads=shape.tower_heads,
            image_size=shape.side,
            patch_size=14,
        ),
        "text_config": LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            intermediate_size=shape.mlp,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=4096,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        ),
        "image_token_index": image_token,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
    }
    if shape.tiles:
        named = ["LlavaNextForConditionalGeneration"]
        return LlavaNextConfig(architectures=named, image_grid_pinpoints=_grids(shape), **parts)
    return LlavaConfig(architectures=["LlavaForConditionalGeneration"], **parts)


def _image_processor(shape: Shape) -> Any:
    sizes = {"size": {"shortest_edge": shape.side}, "crop_size": {"height": shape.side, "width": shape.side}}
    if shape.tiles:
        return LlavaNextImageProcessorPil(image_grid_pinpoints=_grids(shape), **sizes)
    return CLIPImageProcessorPil(**sizes)


def _grids(shape: Shape) -> list[list[int]]:
    return [[shape.side * rows, shape.side * columns] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
