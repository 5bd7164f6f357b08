"""Tiny random-weight checkpoints, saved and loaded the way real ones are."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from covervlm.server.demo import model_path


@pytest.fixture(scope="session")
def noise() -> Callable[..., Image.Image]:
    """A reproducible picture of random blocks: noise(width, height, seed)."""

    def make(width: int, height: int, seed: int = 0) -> Image.Image:
        blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        return Image.fromarray(blocks).resize((width, height), Image.Resampling.BILINEAR)

    return make


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA-1.5 with 16 patches an image, random weights, and a processor that pads to a square."""
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    torch.manual_seed(0)
    processor = AutoProcessor.from_pretrained(model_path())
    tokenizer = processor.tokenizer
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            initializer_range=0.3,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    folder = tmp_path_factory.mktemp("tiny-llava")
    model = LlavaForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.linear_2.weight, std=0.3)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.image_processor = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor.patch_size = 8
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reference() -> Callable[..., SimpleNamespace]:
    """transformers' own greedy generate over a chat: reference(model, processor, messages, images, new_tokens)."""

    @torch.inference_mode()
    def run(model, processor, messages: list[dict], images: list[Image.Image], new_tokens: int) -> SimpleNamespace:
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = processor(images=images or None, text=text, return_tensors="pt")
        out = model.generate(
            **inputs,
            max_new_tokens=new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        prompt = inputs["input_ids"].shape[1]
        return SimpleNamespace(
            tokens=out.sequences[0, prompt:].tolist(), logits=torch.stack(out.logits)[:, 0], prompt=prompt
        )

    return run
