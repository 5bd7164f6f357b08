"""LLaVA-1.5: one CLIP tower, one projector, one square grid of patches per image."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import CLIPVisionConfig
from transformers.activations import ACT2FN

from covervlm.server.models.base import Adapter, Architecture, Box, ImageTokens, Layout, Part
from covervlm.server.models.last_layer import unread
from covervlm.server.models.pictures import Cost, crop_box, crop_cost, crop_pixels

_TOWERS = {"clip_vision_model": "default", "siglip_vision_model": "full"}
"""Towers by what `vision_feature_select_strategy` must be: CLIP's first token is none of the image, SigLIP's is."""
_CROPS_AT_ONCE = 16
"""That the tower sees together: it keeps what each of its layers makes of them."""


class Llava(Architecture):
    """Shape: (width, height) where the processor pads images to a square, else (0, 0), since all look alike."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        vision = config.vision_config
        self.side: int = vision.image_size // vision.patch_size
        self.vision_tokens = self.side**2
        self.skips_cls = _strategy(config) == "default"
        self.has_cls_token = self.skips_cls and isinstance(vision, CLIPVisionConfig)

    @classmethod
    def problems(cls, config: Any) -> Iterator[str]:
        vision = config.vision_config
        needed = _TOWERS.get(vision.model_type)
        if needed is None:
            yield f"the vision tower is a {vision.model_type}; supported are {' and '.join(_TOWERS)}"
            return
        strategy = _strategy(config)
        if strategy != needed:
            why = "counts its CLS token as part of the image" if strategy == "full" else "drops the image's first patch"
            yield (
                f"vision_feature_select_strategy is {strategy!r}, which with a {vision.model_type} {why}; "
                f"only {needed!r} is supported with it"
            )
        if not isinstance(vision.image_size, int) or not isinstance(vision.patch_size, int):
            yield "vision_config.image_size and patch_size should be numbers; only square images are supported"
            return
        if vision.num_channels != 3:
            yield f"vision_config.num_channels is {vision.num_channels}; images have 3"
        deep = vision.num_hidden_layers
        layers = config.vision_feature_layer
        layers = [layers] if isinstance(layers, int) else layers
        # The last but one is there for the CLS token's attention. transformers takes no layer 0.
        if not layers or any(not layer or not -deep - 1 <= layer <= deep for layer in layers) or deep < 2:
            yield f"vision_feature_layer is {config.vision_feature_layer}, and the tower has {deep} layers"
        if config.projector_hidden_act not in ACT2FN:
            yield f"projector_hidden_act is {config.projector_hidden_act!r}, which transformers does not know"

    def shape(self, width: int, height: int, image_processor: Any) -> tuple[int, int]:
        return (width, height) if getattr(image_processor, "do_pad", False) else (0, 0)

    def box(self, width: int, height: int, image_processor: Any) -> Box | None:
        """What of an image the tower sees: beyond the image where it is padded."""
        return crop_box(width, height, image_processor)

    def cost(self, width: int, height: int, image_processor: Any, *, frames: int | None = None) -> Cost:
        return crop_cost(width, height, image_processor)

    def packed(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        """(rows, x) of the tower's values (crops, n, x) for an image of this shape: those that its layout names."""
        return values.flatten(0, 1)

    def _layout(self, shape: tuple[int, ...]) -> Layout:
        allowed = None
        if shape[0]:
            width, height = shape
            vision = self.config.vision_config
            allowed = torch.ones(self.side**2, dtype=torch.bool)
            allowed[padding_patches(width, height, vision.image_size, vision.patch_size)] = False
        every = torch.arange(self.side**2)
        return Layout(len(every), (Part(every, every, (self.side, self.side), allowed),))


class LlavaAdapter(Adapter):
    """Any transformers checkpoint of `LlavaForConditionalGeneration` with a CLIP-type tower."""

    describes = Llava
    architecture: Llava

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self.vision_tower = model.model.vision_tower

    def preprocess(self, image: Image) -> Mapping[str, Any]:
        """pixel_values (3, H, W), or (crops, 3, H, W) where images are cut into crops; `shape` and `box`."""
        image_processor = self.chat.image_processor
        return {
            "pixel_values": self._pixels(image, image_processor),
            "shape": self.architecture.shape(*image.size, image_processor),
            "box": self.architecture.box(*image.size, image_processor),
        }

    def _pixels(self, image: Image, image_processor: Any) -> Tensor:
        return crop_pixels(image, image_processor)

    @torch.inference_mode()
    def encode(self, inputs: Sequence[Mapping[str, Any]], *, cls_attention: bool = False) -> list[ImageTokens]:
        crops = [entry["pixel_values"].view(-1, *entry["pixel_values"].shape[-3:]) for entry in inputs]
        looked = [self._look(some, cls_attention) for some in torch.cat(crops).split(_CROPS_AT_ONCE)]
        features, tokens = (torch.cat(values) for values in list(zip(*looked, strict=True))[:2])
        attention = torch.cat([one[2] for one in looked])[..., None] if cls_attention else None
        images, start = [], 0
        for entry, own in zip(inputs, map(len, crops), strict=True):
            rows, shape = slice(start, start := start + own), entry["shape"]
            packed = self.architecture.packed
            images.append(
                ImageTokens(
                    self.architecture.layout(shape),
                    # Cloned, so that a cached image does not keep the whole batch alive.
                    packed(tokens[rows], shape).clone(),
                    packed(features[rows], shape).clone(),
                    None if attention is None else packed(attention[rows], shape)[:, 0].clone(),
                    box=entry["box"],
                    seconds_per_group=entry.get("seconds_per_group"),
                )
            )
        return images

    def _look(self, pixels: Tensor, cls_attention: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels (B, 3, H, W) to features (B, n, d_v), projector outputs (B, n, d), CLS attention (B, n) if asked."""
        core, config = self.model.model, self.model.config
        pixels = pixels.to(self.embeddings.weight.device, self.embeddings.weight.dtype)
        layers = config.vision_feature_layer
        first = 1 if self.architecture.skips_cls else 0
        layers = [layers] if isinstance(layers, int) else layers
        last = core.vision_tower.encoder.layers[-1]
        with nullcontext() if {-1, config.vision_config.num_hidden_layers} & {*layers} else unread(last):
            hidden = core.vision_tower(pixels, output_hidden_states=True, return_dict=True).hidden_states
        features = torch.cat([hidden[layer][:, first:] for layer in layers], dim=-1)
        attention = self._cls_attention(hidden) if cls_attention else features.new_empty(len(features), 0)
        return features, core.multi_modal_projector(features), attention

    def _cls_attention(self, hidden: Sequence[Tensor]) -> Tensor:
        """That of the tower's penultimate layer, computed separately, so that the tower keeps its fast attention."""
        layer = self.model.model.vision_tower.encoder.layers[-2]
        attention, states = layer.self_attn, layer.layer_norm1(hidden[-3])
        query, key = attention.q_proj(states[:, 0]), attention.k_proj(states)
        return cls_attention(query, key, attention.num_heads) / attention.num_heads


def _strategy(config: Any) -> str:
    # Architectures without a choice leave the CLS token out.
    strategy: str = getattr(config, "vision_feature_select_strategy", "default")
    return strategy


def cls_attention(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Attention of a tower's CLS token over the patches, summed over heads: (B, n) float32.

    query: (B, w), that of the CLS token. key: (B, 1 + n, w), those of all tokens, the CLS token's first.
    """
    batch, length, width = key.shape
    size = width // heads
    query = query.view(batch, heads, 1, size)
    key = key.view(batch, length, heads, size).transpose(1, 2)
    scores = (query @ key.transpose(2, 3)).float() * size**-0.5
    return scores.softmax(-1).sum(1)[:, 0, 1:]


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
