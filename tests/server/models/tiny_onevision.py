"""A tiny LLaVA-OneVision checkpoint, and what transformers itself makes of prompts with images and clips."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from tests.server.models.byte_tokenizer import byte_tokenizer
from tests.server.models.plain_generate import plain_greedy

SIDE, PATCH = 3, 8  # odd, as published towers' 27
PIXELS = SIDE * PATCH
PINPOINTS = [[PIXELS * rows, PIXELS * columns] for rows in range(1, 5) for columns in range(1, 5)]
SPECIALS = ["<|im_start|>", "<|im_end|>", "<image>", "<video>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }} \n{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}<{{ part.type }}>{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTION = "Which color does the star have?"
PROMPTS = {
    "no image": lambda noise: (QUESTION,),
    "one tile": lambda noise: (noise(20, 24), QUESTION),
    "tiles with padding": lambda noise: (noise(60, 25), QUESTION),
    "scaled down": lambda noise: (noise(96, 90), QUESTION),
    "scaled down with padding": lambda noise: (noise(70, 96), QUESTION),
    "tiny image": lambda noise: (noise(1, 1), QUESTION),
    "thin image": lambda noise: (noise(200, 2), QUESTION),
    "two images": lambda noise: (noise(48, 24), "then", noise(94, 96, seed=1), QUESTION),
    "clip": lambda noise: ([noise(40, 30, seed=i) for i in range(3)], QUESTION),
    "one frame": lambda noise: ([noise(40, 30)], QUESTION),
    "clip between images": lambda noise: (
        noise(20, 24),
        [noise(40, 30, seed=i) for i in range(2)],
        "and",
        noise(30, 60, seed=9),
        QUESTION,
    ),
}


def save_tiny_onevision(folder: Path, *, hidden_size: int = 64) -> None:
    """Random weights, 9 patches a crop, up to 16 tiles; hidden_size: of the language model, with four heads."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(SPECIALS)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIALS}
    config = LlavaOnevisionConfig(
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": hidden_size,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "initializer_range": 0.3,
            "eos_token_id": ids["<|im_end|>"],
            "bos_token_id": None,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": PIXELS,
            "patch_size": PATCH,
            "vision_use_head": False,
        },
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        image_grid_pinpoints=PINPOINTS,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.linear_2.weight, std=0.3)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    video = {"video_processor_type": "LlavaOnevisionVideoProcessor", "size": {"height": PIXELS, "width": PIXELS}}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    (folder / "processor_config.json").write_text(
        json.dumps(
            {
                "processor_class": "LlavaOnevisionProcessor",
                "num_image_tokens": SIDE**2,
                "vision_feature_select_strategy": "full",
            }
        )
    )
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))


def image_processor() -> LlavaOnevisionImageProcessorPil:
    return LlavaOnevisionImageProcessorPil(
        size={"height": PIXELS, "width": PIXELS},
        image_grid_pinpoints=PINPOINTS,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def frame(image: Image.Image) -> torch.Tensor:
    """(3, H, W): a frame of a clip, resized and normalised by hand."""
    values = np.asarray(image.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC), dtype=np.float64)
    return torch.tensor((values / 255 - 0.5) / 0.5, dtype=torch.float32).permute(2, 0, 1)


@torch.inference_mode()
def vision(model, part) -> torch.Tensor:
    """(total, d): the tokens of an image or a clip, by transformers' own model."""
    if isinstance(part, list):
        tokens = model.get_video_features(torch.stack([frame(one) for one in part])[None]).pooler_output[0]
        # Older releases add the newline later.
        pooled = len(part) * math.ceil(SIDE / 2) ** 2
        return tokens if len(tokens) > pooled else torch.cat([tokens, model.model.image_newline[None]])
    inputs = image_processor()(part, return_tensors="pt")
    return model.get_image_features(inputs.pixel_values, inputs.image_sizes).pooler_output[0]


def inputs_of(model, tokenizer, parts):
    """What transformers' own processor would feed the model, put together without it: it needs torchvision."""
    text, images, clips = "<|im_start|>user \n", [], []
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        (clips if isinstance(part, list) else images).append(part)
        text += ("<video>" if isinstance(part, list) else "<image>") * len(vision(model, part))
    ids = torch.tensor([tokenizer(text + "<|im_end|>\n<|im_start|>assistant\n").input_ids])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if images:
        seen = image_processor()(images, return_tensors="pt")
        inputs |= {"pixel_values": seen.pixel_values, "image_sizes": seen.image_sizes}
    if clips:
        inputs["pixel_values_videos"] = torch.stack([torch.stack([frame(one) for one in clip]) for clip in clips])
    return inputs


@torch.inference_mode()
def pruned_by_hand(model, tokenizer, parts, inputs, stays, steps):
    """Greedy decoding of the prompt without the tokens that do not stay, from the whole prompt's own embeddings."""
    ids = inputs["input_ids"][0]
    embeddings = model.get_input_embeddings()(ids).clone()
    seen = [vision(model, part) for part in parts if not isinstance(part, str)]
    of_vision = (ids == model.config.image_token_id) | (ids == model.config.video_token_id)
    embeddings[of_vision] = torch.cat(seen)
    return plain_greedy(model, embeddings[stays], steps)
