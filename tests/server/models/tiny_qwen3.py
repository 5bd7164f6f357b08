"""A tiny Qwen3-VL checkpoint, and what transformers itself makes of prompts with images and clips."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.video_utils import VideoMetadata

from tests.server.models.byte_tokenizer import byte_tokenizer
from tests.server.models.tiny_qwen import SPECIALS, TEMPLATE, clip, still

QUESTION = "Which color does the star have?"
DEPTH = [0, 2]  # layers of the tower that are handed to the language model's first layers
PROMPTS = {
    "no image": lambda noise: (QUESTION,),
    "one image": lambda noise: (noise(160, 96), QUESTION),
    "odd grid": lambda noise: (noise(224, 160), QUESTION),
    "tiny image": lambda noise: (noise(1, 1), QUESTION),
    "two images": lambda noise: (noise(100, 60), "then", noise(60, 170, seed=1), QUESTION),
    "adjacent images": lambda noise: (noise(100, 60), noise(60, 170, seed=1)),
    "clip": lambda noise: ([noise(96, 64, seed=i) for i in range(6)], QUESTION),
    "odd clip": lambda noise: ([noise(96, 64, seed=i) for i in range(3)], QUESTION),
    "one frame": lambda noise: ([noise(96, 64)], QUESTION),
    "adjacent clips": lambda noise: (
        [noise(96, 64, seed=i) for i in range(4)],
        [noise(64, 96, seed=i) for i in (7, 8)],
    ),
    "clip between images": lambda noise: (
        noise(64, 96),
        QUESTION,
        [noise(96, 64, seed=i) for i in range(5)],
        "and",
        noise(128, 64, seed=9),
        QUESTION,
    ),
}


def save_tiny_qwen3(folder: Path, *, hidden_size: int = 64) -> None:
    """Random weights, patches of 16, three layers of which two are language layers' too; four heads of 16 or more."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(SPECIALS)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIALS}
    unit = hidden_size // 64
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden_size,
            "head_dim": 16 * unit,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4 * unit, 2 * unit, 2 * unit],
                "mrope_interleaved": True,
            },
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
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": DEPTH,
            "initializer_range": 0.3,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))


def image_processor() -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        patch_size=16,
        min_pixels=32 * 32 * 2,
        max_pixels=32 * 32 * 64,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def inputs_of(model, tokenizer, parts, fps=2.0):
    """What transformers' own processor feeds the model: its own spelling of clips, pixels put together without it.

    Its video processor needs torchvision.
    """
    processor = Qwen3VLProcessor.__new__(Qwen3VLProcessor)
    processor.tokenizer, processor.image_processor = tokenizer, image_processor()
    processor.video_processor = SimpleNamespace(merge_size=2, temporal_patch_size=2)
    processor.image_token, processor.video_token = "<|image_pad|>", "<|video_pad|>"
    processor.vision_start_token, processor.vision_end_token = "<|vision_start|>", "<|vision_end|>"
    text, patches, grids, metadata = "<|im_start|>user\n", {"image": [], "video": []}, {"image": [], "video": []}, []
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        kind, make = ("video", clip) if isinstance(part, list) else ("image", still)
        pixels, grid = make(part, image_processor())
        patches[kind].append(pixels)
        grids[kind].append(grid)
        if kind == "video":
            metadata.append(VideoMetadata(len(part), fps=fps, frames_indices=list(range(len(part)))))
        text += f"<|vision_start|><|{kind}_pad|><|vision_end|>"
    seen = {f"{kind}_grid_thw": torch.cat(own) for kind, own in grids.items() if own}
    images = [processor.replace_image_token(seen, i) for i in range(len(grids["image"]))]
    clips = [processor.replace_video_token(seen | {"video_metadata": metadata}, i) for i in range(len(metadata))]
    text += "<|im_end|>\n<|im_start|>assistant\n"
    if images or clips:
        [text], _ = processor.get_text_with_replacements([text], images, clips)
    ids = torch.tensor([tokenizer(text).input_ids])
    kinds = (ids == model.config.image_token_id).int() + 2 * (ids == model.config.video_token_id).int()
    pixels = {"image": "pixel_values", "video": "pixel_values_videos"}
    seen |= {pixels[kind]: torch.cat(own) for kind, own in patches.items() if own}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds} | seen


@torch.inference_mode()
def pruned_by_hand(model, tokenizer, parts, inputs, stays, steps):
    """Greedy decoding of the prompt without the tokens that do not stay; positions and deeper features stay theirs."""
    ids, kinds = inputs["input_ids"][0], inputs["mm_token_type_ids"][0]
    embeddings = model.get_input_embeddings()(ids).clone()
    deeper = torch.zeros(len(DEPTH), *embeddings.shape)
    for kind, name in ((1, "image"), (2, "video")):
        if f"{name}_grid_thw" in inputs:
            pixels = inputs["pixel_values" if kind == 1 else "pixel_values_videos"]
            seen = getattr(model, f"get_{name}_features")(pixels, inputs[f"{name}_grid_thw"])
            embeddings[kinds == kind] = torch.cat(seen.pooler_output)
            assert len(seen.deepstack_features) == len(DEPTH)
            for number, layer in enumerate(seen.deepstack_features):
                # Older releases leave the images' features together.
                deeper[number, kinds == kind] = layer if isinstance(layer, torch.Tensor) else torch.cat(layer)
    grids = {name: inputs.get(name) for name in ("image_grid_thw", "video_grid_thw")}
    positions, _ = model.model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], **grids)
    following = int(positions.max()) + 1
    embeddings, positions, of_vision = embeddings[stays], positions[:, 0, stays], kinds[stays].bool()
    deeper = list(deeper[:, stays & kinds.bool()])
    tokens, logits = [], []
    for step in range(steps):
        hidden = model.model.language_model(
            inputs_embeds=embeddings[None],
            position_ids=positions[:, None],
            visual_pos_masks=of_vision[None],
            deepstack_visual_embeds=deeper,
        ).last_hidden_state
        logits.append(model.lm_head(hidden[0, -1]))
        tokens.append(int(logits[-1].argmax()))
        embeddings = torch.cat([embeddings, model.get_input_embeddings()(torch.tensor(tokens[-1:]))])
        positions = torch.cat([positions, torch.full((3, 1), following + step)], dim=1)
        of_vision = torch.cat([of_vision, torch.zeros(1, dtype=torch.bool)])
    return tokens, torch.stack(logits)
