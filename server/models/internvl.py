"""InternVL3: tiles that fill a picture's whole shape, a small view of the whole after them, four patches to a token."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.activations import ACT2FN

from covervlm.server.models.base import Adapter, Architecture, Box, ImageTokens, Layout, Part
from covervlm.server.models.pictures import Cost, mosaic, mosaic_cost, mosaic_pixels


class InternVL(Architecture):
    """Shape: (rows, columns) of tiles. An image's tokens are those of its tiles, then of the view of the whole."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        vision = config.vision_config
        self.merged = round(1 / config.downsample_ratio)
        self.side: int = vision.image_size[0] // vision.patch_size[0] // self.merged

    @classmethod
    def problems(cls, config: Any) -> Iterator[str]:
        vision = config.vision_config
        if vision.model_type != "internvl_vision":
            yield f"the vision tower is a {vision.model_type}; supported is internvl_vision"
            return
        if len({*vision.image_size}) != 1 or len({*vision.patch_size}) != 1:
            yield "vision_config.image_size and patch_size should each be one number; only square images are supported"
            return
        if vision.num_channels != 3:
            yield f"vision_config.num_channels is {vision.num_channels}; images have 3"
        if config.vision_feature_layer != -1:
            yield f"vision_feature_layer is {config.vision_feature_layer}; only -1, the last, is supported"
        if config.vision_feature_select_strategy != "default":
            yield (
                f"vision_feature_select_strategy is {config.vision_feature_select_strategy!r}, which counts the CLS "
                "token as part of the image; only 'default' is supported"
            )
        if config.projector_hidden_act not in ACT2FN:
            yield f"projector_hidden_act is {config.projector_hidden_act!r}, which transformers does not know"
        merged, side = 1 / config.downsample_ratio, vision.image_size[0] // vision.patch_size[0]
        if merged != round(merged) or side % round(merged):
            yield f"downsample_ratio is {config.downsample_ratio}, which does not divide {side} rows of patches"

    def shape(self, width: int, height: int, image_processor: Any) -> tuple[int, int]:
        return mosaic(width, height, image_processor)

    def box(self, width: int, height: int, image_processor: Any) -> Box | None:
        return (0.0, 0.0, float(width), float(height)) if self.shape(width, height, image_processor) == (1, 1) else None

    def cost(self, width: int, height: int, image_processor: Any, *, frames: int | None = None) -> Cost:
        return mosaic_cost(width, height, image_processor)

    def frame(self, tokenizer: PreTrainedTokenizerBase) -> tuple[Sequence[int], Sequence[int]]:
        start, end = (getattr(tokenizer, f"{name}_image_token_id", None) for name in ("start", "end"))
        if start is None or end is None:
            raise ValueError("the tokenizer names no start_image_token and end_image_token, which stand around images")
        return (start,), (end,)

    def averaged(self, states: Tensor) -> Tensor:
        """(crops, n, d_v) float32: the tower's states (crops, n * merged ** 2, d_v), averaged for each token."""
        side, merged = self.side, self.merged
        return states.float().unflatten(1, (side, merged, side, merged)).mean((2, 4)).flatten(1, 2)

    def _layout(self, shape: tuple[int, ...]) -> Layout:
        rows, columns = shape
        tiles = rows * columns
        crops = torch.arange((tiles + (tiles > 1)) * self.side**2).view(-1, self.side**2)
        return Layout(crops.numel(), tuple(Part(crop, crop, (self.side, self.side)) for crop in crops))


class InternVLAdapter(Adapter):
    """Any transformers checkpoint of `InternVLForConditionalGeneration`."""

    describes = InternVL
    architecture: InternVL

    def preprocess(self, image: Image) -> Mapping[str, Any]:
        """pixel_values (crops, 3, H, W), `shape` and `box`."""
        image_processor = self.chat.image_processor
        return {
            "pixel_values": mosaic_pixels(image, image_processor),
            "shape": self.architecture.shape(*image.size, image_processor),
            "box": self.architecture.box(*image.size, image_processor),
        }

    @torch.inference_mode()
    def encode(self, inputs: Sequence[Mapping[str, Any]], *, cls_attention: bool = False) -> list[ImageTokens]:
        if cls_attention:
            raise ValueError("the CLS token of InternVL's tower was trained for nothing; its attention says nothing")
        pixels = torch.cat([entry["pixel_values"] for entry in inputs]).to(self.embeddings.weight.device)
        output = self.model.model.get_image_features(pixel_values=pixels)
        features = self.architecture.averaged(output.last_hidden_state[:, 1:])
        images, start = [], 0
        for entry in inputs:
            own = slice(start, start := start + len(entry["pixel_values"]))
            images.append(
                ImageTokens(
                    self.architecture.layout(entry["shape"]),
                    # Cloned, so that a cached image does not keep the whole batch alive.
                    output.pooler_output[own].flatten(0, 1).clone(),
                    features[own].flatten(0, 1).clone(),
                    box=entry["box"],
                )
            )
        return images
