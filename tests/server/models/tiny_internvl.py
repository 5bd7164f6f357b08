"""A tiny InternVL3 checkpoint, and what transformers itself makes of prompts with images."""

import json
from pathlib import Path

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

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


def tiles(image) -> torch.Tensor:
    """(crops, 3, H, W)"""
    return image_processor()(image, crop_to_patches=True, return_tensors="pt").pixel_values


def inputs_of(model, tokenizer, parts):
    """What transformers' own processor would feed the model, put together without it: it needs torchvision."""
    text, images = "<|im_start|>user\n", []
    for part in parts:
        if not isinstance(part, str):
            images.append(tiles(part))
            part = "<img>" + "<IMG_CONTEXT>" * 4 * len(images[-1]) + "</img>\n"
        text += part
    ids = torch.tensor([tokenizer(text + "<|im_end|>\n<|im_start|>assistant\n").input_ids])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | ({"pixel_values": torch.cat(images)} if images else {})


@torch.inference_mode()
def pruned_by_hand(model, tokenizer, parts, inputs, stays, steps):
    """Greedy decoding of the prompt without the tokens that do not stay, from the whole prompt's own embeddings."""
    ids = inputs["input_ids"][0]
    embeddings = model.get_input_embeddings()(ids).clone()
    seen = model.get_image_features(inputs["pixel_values"]).pooler_output
    embeddings[ids == model.config.image_token_id] = seen.flatten(0, 1)
    return plain_greedy(model, embeddings[stays], steps)
