"""A tiny Qwen2.5-VL checkpoint, and what transformers itself makes of prompts with images and clips."""

import hashlib
import json
from pathlib import Path

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from covervlm.server.core.generation import ImagePart, Message, VideoPart
from tests.server.models.byte_tokenizer import byte_tokenizer

SPECIALS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PIXELS = {"min_pixels": 28 * 28 * 2, "max_pixels": 28 * 28 * 64}
QUESTION = "Which color does the star have?"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
PROMPTS = {
    "no image": lambda noise: (QUESTION,),
    "one image": lambda noise: (noise(140, 84), QUESTION),
    "odd grid": lambda noise: (noise(196, 140), QUESTION),
    "tiny image": lambda noise: (noise(1, 1), QUESTION),
    "two images": lambda noise: (noise(100, 60), "then", noise(60, 170, seed=1), QUESTION),
    "adjacent images": lambda noise: (noise(100, 60), noise(60, 170, seed=1)),
    "clip": lambda noise: ([noise(84, 56, seed=i) for i in range(6)], QUESTION),
    "odd clip": lambda noise: ([noise(84, 56, seed=i) for i in range(3)], QUESTION),
    "clip between images": lambda noise: (
        noise(56, 84),
        QUESTION,
        [noise(84, 56, seed=i) for i in range(4)],
        "and",
        noise(112, 56, seed=9),
        QUESTION,
    ),
}


def save_tiny_qwen(folder: Path, *, hidden_size: int = 64) -> None:
    """Random weights, windows of 2 x 2 merge groups, a byte-level tokenizer; laid out as hub repositories are.

    hidden_size: of the language model, with four heads.
    """
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(SPECIALS)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIALS}
    unit = hidden_size // 64
    sections = [2 * unit, 3 * unit, 3 * unit]  # of half a head: time, height, width
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden_size,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections},
            "initializer_range": 0.3,
            "eos_token_id": ids["<|im_end|>"],
            "bos_token_id": None,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": hidden_size,
            "fullatt_block_indexes": [1],
            "window_size": 56,
            "patch_size": 14,
            "tokens_per_second": 2,
            "initializer_range": 0.3,
        },
        image_token_id=ids[IMAGE],
        video_token_id=ids[VIDEO],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(**PIXELS).save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))


def chat(*parts) -> tuple[Message, ...]:
    def wrap(part):
        if isinstance(part, str):
            return part
        images = part if isinstance(part, list) else [part]
        digest = hashlib.sha256(b"".join(repr(image.size).encode() + image.tobytes() for image in images)).hexdigest()
        return VideoPart(tuple(part), digest) if isinstance(part, list) else ImagePart(part, digest)

    return (Message("user", tuple(map(wrap, parts))),)


def still(image, processor=None):
    """transformers' inputs of one image: patches and grid."""
    inputs = (processor or Qwen2VLImageProcessorPil(**PIXELS))(image, return_tensors="pt")
    return inputs.pixel_values, inputs.image_grid_thw


def clip(frames, processor=None):
    """Patches and grid of a clip by plain loops over its frames' own patches."""
    frames = frames + [frames[-1]] * (len(frames) % 2)
    patches = [still(frame, processor)[0].unflatten(1, (3, 2, -1))[:, :, 0] for frame in frames]
    rows = []
    for first, second in zip(patches[::2], patches[1::2], strict=True):
        for p in range(len(first)):
            rows.append(torch.cat([torch.cat([first[p, c], second[p, c]]) for c in range(3)]))
    _, height, width = still(frames[0], processor)[1][0].tolist()
    return torch.stack(rows), torch.tensor([[len(frames) // 2, height, width]])


def transformers_inputs(tokenizer, parts, fps=2.0):
    """What transformers' own processor would feed the model, put together without it: it needs torchvision."""
    text, pixels, grids = "<|im_start|>user\n", {IMAGE: [], VIDEO: []}, {IMAGE: [], VIDEO: []}
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        pad, (patches, grid) = (VIDEO, clip(part)) if isinstance(part, list) else (IMAGE, still(part))
        pixels[pad].append(patches)
        grids[pad].append(grid)
        text += "<|vision_start|>" + pad * (len(patches) // 4) + "<|vision_end|>"
    ids = torch.tensor([tokenizer(text + "<|im_end|>\n<|im_start|>assistant\n").input_ids])
    kinds = {tokenizer.convert_tokens_to_ids(IMAGE): 1, tokenizer.convert_tokens_to_ids(VIDEO): 2}
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": torch.tensor([[kinds.get(i, 0) for i in ids[0].tolist()]]),
    }
    if pixels[IMAGE]:
        inputs |= {"pixel_values": torch.cat(pixels[IMAGE]), "image_grid_thw": torch.cat(grids[IMAGE])}
    if pixels[VIDEO]:
        inputs |= {"pixel_values_videos": torch.cat(pixels[VIDEO]), "video_grid_thw": torch.cat(grids[VIDEO])}
        inputs["second_per_grid_ts"] = torch.tensor([2 / fps] * len(grids[VIDEO]))
    return inputs
