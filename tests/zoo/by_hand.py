"""What transformers' own processors feed models that read videos, put together without them: they need torchvision."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image

Seen = tuple[dict[str, Any], str, list[str]]
"""Inputs of the tower, what stands for an image in the chat template, and what each image becomes of it."""


def _onevision(model: Any, image_processor: Any, images: Sequence[Image]) -> Seen:
    vision = dict(image_processor(list(images), return_tensors="pt"))
    with torch.inference_mode():
        tokens = model.get_image_features(vision["pixel_values"], vision["image_sizes"]).pooler_output
    return vision, "<image>", ["<image>" * len(each) for each in tokens]


def _internvl(model: Any, image_processor: Any, images: Sequence[Image]) -> Seen:
    tiles = [image_processor(each, crop_to_patches=True, return_tensors="pt").pixel_values for each in images]
    shown = ["<IMG_CONTEXT>" * (model.config.image_seq_length * len(each)) for each in tiles]
    return {"pixel_values": torch.cat(tiles)}, "<IMG_CONTEXT>", [f"<img>{each}</img>" for each in shown]


def _qwen(model: Any, image_processor: Any, images: Sequence[Image]) -> Seen:
    vision = dict(image_processor(list(images), return_tensors="pt"))
    return vision, "<|image_pad|>", ["<|image_pad|>" * (int(grid.prod()) // 4) for grid in vision["image_grid_thw"]]


BY_HAND: Mapping[str, Callable[[Any, Any, Sequence[Image]], Seen]] = {
    "llava_onevision": _onevision,
    "internvl": _internvl,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
}
"""By the configuration's model_type."""


def inputs_by_hand(
    model: Any, tokenizer: Any, image_processor: Any, text: str, images: Sequence[Image]
) -> dict[str, Any]:
    """text: of the chat template, with a placeholder for each image."""
    vision: dict[str, Any] = {}
    if images:
        vision, placeholder, shown = BY_HAND[model.config.model_type](model, image_processor, images)
        between = text.split(placeholder)
        assert len(between) == len(images) + 1
        text = between[0] + "".join(map("".join, zip(shown, between[1:], strict=True)))
    ids = torch.tensor([tokenizer(text).input_ids])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **vision}
    if "qwen" in model.config.model_type:
        inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).long()
    return inputs
