"""LLaVA-1.5: one CLIP tower, one projector, one square grid of patches per image."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import AutoProcessor, PreTrainedTokenizerBase

from covervlm.pruners.question import visual_words
from covervlm.server.engines.base import InvalidRequest, Message
from covervlm.server.models.base import AssembledPrompt, ImageTokens, Kept, Prompt, Region
from covervlm.server.models.language import embed, eos_ids, load_model, splice
from covervlm.server.models.processor import ChatProcessor
from covervlm.server.models.registry import Checkpoint


def padding_patches(width: int, height: int, image_size: int = 336, patch_size: int = 14) -> list[int]:
    """Indices, in raster order, of the patches that hold nothing but padding once an image is padded to a square.

    The longer side is scaled to image_size; what the shorter one lacks is split between both margins, the smaller
    half first, and only whole rows or columns of patches count (MMTok, section on implementation).
    """
    side = image_size // patch_size
    short = round(min(width, height) * image_size / max(width, height))
    before = (image_size - short) // 2
    after = image_size - short - before
    first, last = before // patch_size, side - after // patch_size
    padded = [line < first or line >= last for line in range(side)]
    wide = width >= height
    return [row * side + column for row in range(side) for column in range(side) if padded[row if wide else column]]


def viewed_area(width: int, height: int, image_processor: Any) -> tuple[float, float, float, float]:
    """What of an image the tower sees: (left, top, right, bottom) in pixels, beyond the image where it is padded."""
    seen_width, seen_height = float(width), float(height)
    if getattr(image_processor, "do_pad", False):
        seen_width = seen_height = float(max(width, height))
    elif image_processor.do_center_crop and image_processor.size.shortest_edge:
        scale = min(width, height) / image_processor.size.shortest_edge
        seen_width, seen_height = image_processor.crop_size.width * scale, image_processor.crop_size.height * scale
    left, top = (width - seen_width) / 2, (height - seen_height) / 2
    return left, top, left + seen_width, top + seen_height


class LlavaAdapter:
    """Any transformers checkpoint of `LlavaForConditionalGeneration` with a CLIP-type tower."""

    pruner_params: Mapping[str, float] = {}
    position_axes = 1

    def __init__(self, model: Any, processor: Any) -> None:
        config = model.config
        self.model = model
        self.language_model = model.model.language_model
        self.lm_head = model.lm_head
        self.chat = ChatProcessor(processor, {processor.image_token: config.image_token_id})
        self.context_length: int = config.text_config.max_position_embeddings
        self.eos_ids = eos_ids(model)
        self.embeddings = model.get_input_embeddings()
        self._side = config.vision_config.image_size // config.vision_config.patch_size
        self.has_cls_token = config.vision_feature_select_strategy == "default"
        self.vision_tokens: int | None = self._side**2

    @classmethod
    def load(cls, checkpoint: Checkpoint) -> Self:
        """Read model and processor from a checkpoint, safetensors only."""
        processor = AutoProcessor.from_pretrained(checkpoint.path, trust_remote_code=checkpoint.trust_remote_code)
        return cls(load_model(checkpoint), processor)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.chat.tokenizer

    def tokenize(self, messages: Sequence[Message]) -> Prompt:
        return self.chat.tokenize(messages)

    def preprocess(self, image: Image) -> Mapping[str, Any]:
        """pixel_values (3, H, W), `box`, and `allowed` (n,) bool where the processor pads to a square."""
        image_processor = self.chat.image_processor
        inputs: dict[str, Any] = {
            "pixel_values": image_processor(image, return_tensors="pt").pixel_values[0],
            "box": viewed_area(*image.size, image_processor),
        }
        if getattr(image_processor, "do_pad", False):
            vision = self.model.config.vision_config
            allowed = torch.ones(self._side**2, dtype=torch.bool)
            allowed[padding_patches(*image.size, vision.image_size, vision.patch_size)] = False
            inputs["allowed"] = allowed
        return inputs

    def preprocess_video(self, frames: Sequence[Image], fps: float) -> Mapping[str, Any]:
        raise InvalidRequest("This model reads images, not videos; send frames as separate images.", param="messages")

    @torch.inference_mode()
    def encode(self, inputs: Sequence[Mapping[str, Any]], *, cls_attention: bool = False) -> list[ImageTokens]:
        pixels = torch.stack([entry["pixel_values"] for entry in inputs])
        features, tokens, attention = self._look(pixels, cls_attention)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        grid = (self._side, self._side)
        images = []
        for i, entry in enumerate(inputs):
            allowed = entry["allowed"].to(tokens.device) if "allowed" in entry else None
            # Cloned, so that a cached image does not keep the whole batch alive.
            cls_row = attention[i].clone() if attention is not None else None
            region = Region(positions, features[i].clone(), grid, allowed, cls_row)
            images.append(ImageTokens(tokens=tokens[i].clone(), regions=(region,), grid=grid, box=entry["box"]))
        return images

    @torch.inference_mode()
    def question_embeddings(self, question: str) -> Tensor:
        return embed(self.embeddings, self.chat.word_ids(visual_words(question)))

    @torch.inference_mode()
    def assemble(self, prompt: Prompt, images: Sequence[Kept]) -> AssembledPrompt:
        embeddings = splice(self.embeddings, prompt, images)
        positions = torch.arange(len(embeddings), device=embeddings.device)[None]
        return AssembledPrompt(embeddings, positions, next_position=len(embeddings))

    def _look(self, pixels: Tensor, cls_attention: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Pixels (B, 3, H, W) to features (B, n, d_v), projector outputs (B, n, d), CLS attention (B, n) if asked."""
        core, config = self.model.model, self.model.config
        pixels = pixels.to(self.embeddings.weight.device, self.embeddings.weight.dtype)
        hidden = core.vision_tower(pixels, output_hidden_states=True, return_dict=True).hidden_states
        layer = config.vision_feature_layer
        first = 1 if self.has_cls_token else 0
        if isinstance(layer, int):
            features = hidden[layer][:, first:]
        else:
            features = torch.cat([hidden[index][:, first:] for index in layer], dim=-1)
        attention = self._cls_attention(hidden) if cls_attention else None
        return features, core.multi_modal_projector(features), attention

    def _cls_attention(self, hidden: Sequence[Tensor]) -> Tensor:
        """Attention of the CLS token over the patches in the tower's penultimate layer, mean over heads: (B, n).

        Only the CLS row is computed, from that layer's own projections, so the tower keeps its fast attention.
        """
        layer = self.model.model.vision_tower.encoder.layers[-2]
        attention = layer.self_attn
        states = layer.layer_norm1(hidden[-3])
        batch, length, width = states.shape
        heads = attention.num_heads
        query = attention.q_proj(states[:, 0]).view(batch, heads, 1, width // heads)
        key = attention.k_proj(states).view(batch, length, heads, width // heads).transpose(1, 2)
        scores = (query @ key.transpose(2, 3)).float() * (width // heads) ** -0.5
        return scores.softmax(-1).mean(1)[:, 0, 1:]
