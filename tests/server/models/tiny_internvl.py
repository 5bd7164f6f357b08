"""A tiny InternVL3 checkpoint, and what transformers itself makes of prompts with images and clips."""

import json
from pathlib import Path

import torch
from PIL.Image import Image
from transformers import InternVLConfig, InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor

from tests.server.models.byte_tokenizer import byte_tokenizer
from tests.server.models.plain_generate import plain_greedy

SIDE, PATCH = 4, 8  # two by two patches are one token
PIXELS = SIDE * PATCH
NAMED = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
SPECIALS = ["<|im_start|>", "<|im_end|>", *NAMED.values()]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<IMG_CONTEXT>\n{% elif part.type == 'video' %}<video>\n"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTION = "Which color does the star have?"
PROMPTS = {
    "no image": lambda noise: (QUESTION,),
    "one tile": lambda noise: (noise(30, 32), QUESTION),
    "two rows": lambda noise: (noise(40, 90), QUESTION),
    "six tiles": lambda noise: (noise(300, 200), QUESTION),
    "tiny image": lambda noise: (noise(1, 1), QUESTION),
    "thin image": lambda noise: (noise(200, 2), QUESTION),
    "two images": lambda noise: (noise(50, 24), "then", noise(94, 96, seed=1), QUESTION),
    "clip": lambda noise: ([noise(40, 30, seed=i) for i in range(3)], QUESTION),
    "long clip": lambda noise: ([noise(40, 30, seed=i) for i in range(18)], QUESTION),
    "one frame": lambda noise: ([noise(40, 30)], QUESTION),
    "adjacent clips": lambda noise: (
        [noise(40, 30, seed=i) for i in range(4)],
        [noise(30, 40, seed=i) for i in (7, 8)],
    ),
    "clip between images": lambda noise: (
        noise(40, 90),
        QUESTION,
        [noise(40, 30, seed=i) for i in range(5)],
        "and",
        noise(30, 60, seed=9),
        QUESTION,
    ),
}


def save_tiny_internvl(folder: Path, *, hidden_size: int = 64) -> None:
    """Random weights, 4 tokens a tile, up to 6 tiles; hidden_size: of the language model, with four heads."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(SPECIALS, **NAMED)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIALS}
    config = InternVLConfig(
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": hidden_size,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "initializer_range": 0.3,
            "eos_token_id": ids["<|im_end|>"],
            "bos_token_id": None,
            # As published checkpoints have them.
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "attention_bias": True,
            "image_size": [PIXELS, PIXELS],
            "patch_size": [PATCH, PATCH],
            "initializer_range": 0.3,
        },
        image_token_id=ids["<IMG_CONTEXT>"],
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    model = InternVLForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.linear_2.weight, std=0.3)
    torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embeddings, std=0.3)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    video = {"video_processor_type": "InternVLVideoProcessor", "size": {"height": PIXELS, "width": PIXELS}}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    processor = {"processor_class": "InternVLProcessor", "image_seq_length": 4}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))


def image_processor() -> GotOcr2ImageProcessorPil:
    return GotOcr2ImageProcessorPil(size={"height": PIXELS, "width": PIXELS}, max_patches=6)


def tiles(part) -> torch.Tensor:
    """(crops, 3, H, W): of an image, or of the frames of a clip, which are a tile each."""
    clip = isinstance(part, list)
    return image_processor()(part, crop_to_patches=not clip, return_tensors="pt").pixel_values


def spelled(tokenizer, text, parts) -> str:
    """A chat's text as transformers' own processor spells it, which cannot be built: its clips need torchvision."""
    processor = InternVLProcessor.__new__(InternVLProcessor)
    processor.tokenizer, processor.image_seq_length = tokenizer, 4
    processor.image_token, processor.video_token = NAMED["context_image_token"], NAMED["video_token"]
    processor.start_image_token, processor.end_image_token = NAMED["start_image_token"], NAMED["end_image_token"]
    images, clips = [], []
    for part in parts:
        if isinstance(part, list):
            clips.append(processor.replace_video_token({"pixel_values_videos": [tiles(part)]}, 0))
        elif not isinstance(part, str):
            images.append(processor.replace_image_token({"num_patches": [len(tiles(part))]}, 0))
    if images or clips:
        [text], _ = processor.get_text_with_replacements([text], images, clips)
    return text


def inputs_of(model, tokenizer, parts):
    """What transformers' own processor feeds the model: its own spelling, pixels put together without it."""
    marks = {list: "<video>\n", Image: "<IMG_CONTEXT>\n"}
    text = "".join(part if isinstance(part, str) else marks[type(part)] for part in parts)
    text = spelled(tokenizer, f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n", parts)
    ids = torch.tensor([tokenizer(text).input_ids])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    pixels = [tiles(part) for part in parts if not isinstance(part, str)]
    return inputs | ({"pixel_values": torch.cat(pixels)} if pixels else {})


@torch.inference_mode()
def pruned_by_hand(model, tokenizer, parts, inputs, stays, steps):
    """Greedy decoding of the prompt without the tokens that do not stay, from the whole prompt's own embeddings."""
    ids = inputs["input_ids"][0]
    embeddings = model.get_input_embeddings()(ids).clone()
    seen = model.get_image_features(inputs["pixel_values"]).pooler_output
    embeddings[ids == model.config.image_token_id] = seen.flatten(0, 1)
    return plain_greedy(model, embeddings[stays], steps)
