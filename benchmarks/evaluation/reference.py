"""Answers of transformers' own `generate`, one question at a time: what a server's unpruned answers must equal."""

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from evaluation.over_http import MAX_TOKENS
from evaluation.question_sets import Item, scene_of


class Reference:
    """A checkpoint as a user of transformers would run it; none of this project's code takes part."""

    def __init__(self, model_path: Path | str) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(model_path, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(model_path)

    @torch.inference_mode()
    def answer(self, item: Item) -> str:
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": item.question}]}]
        text = self.processor.apply_chat_template(chat, add_generation_prompt=True)
        inputs = self.processor(images=scene_of(item.set, item.seed).image, text=text, return_tensors="pt")
        output = self.model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        written = output[0, inputs["input_ids"].shape[1] :]
        return self.processor.tokenizer.decode(written, skip_special_tokens=True).strip()
