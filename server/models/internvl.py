"""InternVL3: tiles that fill a picture's whole shape, then a small view of it, four patches to a token; and clips."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.activations import ACT2FN

from covervlm.server.models.base import Adapter, Architecture, Box, ImageTokens, Layout, Part
from covervlm.server.models.clip_text import ClipText
from covervlm.server.models.pictures import (
    Cost,
    check_frames,
    frame_cost,
    frame_pixels,
    mosaic,
    mosaic_cost,
    mosaic_pixels,
)

_CROPS_AT_ONCE = 16
"""That the tower sees together: a clip may have many frames."""


class InternVL(Architecture):
    """Shape: (rows, columns) of an image's tiles, or (frames,) of a clip.

    An image's tokens are those of its tiles, then of the view of the whole. A clip's frames are a tile each, and stand
    apart in a prompt, each after its number.
    """

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
        if frames is None:
            return mosaic_cost(width, height, image_processor)
        return frame_cost(width, height, image_processor, frames)

    def frame(self, tokenizer: PreTrainedTokenizerBase) -> tuple[Sequence[int], Sequence[int]]:
        start, end = (getattr(tokenizer, f"{name}_image_token_id", None) for name in ("start", "end"))
        if start is None or end is None:
            raise ValueError("the tokenizer names no start_image_token and end_image_token, which stand around images")
        return (start,), (end,)

    def placeholders(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
        """Also the token for a clip, which the tokenizer names and the configuration does not."""
        video, place = (getattr(tokenizer, name, None) for name in ("video_token", "video_token_id"))
        named = {} if video is None or place is None else {video: place}
        return super().placeholders(tokenizer) | named

    def clip_text(self, tokenizer: Any, image_processor: Any) -> ClipText | None:
        """As many lines as frames, each with the frame's number."""
        video = getattr(tokenizer, "video_token", None)
        if video is None:
            return None
        image = tokenizer.convert_ids_to_tokens(self.config.image_token_id)

        def lines(frames: int, fps: float) -> Iterator[str]:
            for number in range(1, frames + 1):
                yield ("\n" if number > 1 else "") + f"Frame{number}: {image}"

        return ClipText(video, lines)

    def averaged(self, states: Tensor) -> Tensor:
        """(crops, n, d_v) float32: the tower's states (crops, n * merged ** 2, d_v), averaged for each token."""
        side, merged = self.side, self.merged
        return states.float().unflatten(1, (side, merged, side, merged)).mean((2, 4)).flatten(1, 2)

    def _layout(self, shape: tuple[int, ...]) -> Layout:
        clip, tiles = len(shape) == 1, math.prod(shape)
        count = tiles if clip or tiles == 1 else tiles + 1
        crops = torch.arange(count * self.side**2).view(count, -1)
        parts = tuple(Part(crop, crop, (self.side, self.side)) for crop in crops)
        return Layout(crops.numel(), parts, slots=count if clip else 1)


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

    def preprocess_video(self, frames: Sequence[Image], fps: float) -> Mapping[str, Any]:
        """As `preprocess`, of a clip: pixel_values (frames, 3, H, W), and seconds_per_group."""
        check_frames(frames)
        return {
            "pixel_values": frame_pixels(frames, self.chat.image_processor),
            "shape": (len(frames),),
            "box": None,
            "seconds_per_group": 1 / fps,
        }

    @torch.inference_mode()
    def encode(self, inputs: Sequence[Mapping[str, Any]], *, cls_attention: bool = False) -> list[ImageTokens]:
        if cls_attention:
            raise ValueError("the CLS token of InternVL's tower was trained for nothing; its attention says nothing")
        pixels = torch.cat([entry["pixel_values"] for entry in inputs]).to(self.embeddings.weight.device)
        looked = [self.model.model.get_image_features(pixel_values=some) for some in pixels.split(_CROPS_AT_ONCE)]
        tokens = torch.cat([output.pooler_output for output in looked])
        features = torch.cat([self.architecture.averaged(output.last_hidden_state[:, 1:]) for output in looked])
        images, start = [], 0
        for entry in inputs:
            own = slice(start, start := start + len(entry["pixel_values"]))
            images.append(
                ImageTokens(
                    self.architecture.layout(entry["shape"]),
                    # Cloned, so that a cached image does not keep the whole batch alive.
                    tokens[own].flatten(0, 1).clone(),
                    features[own].flatten(0, 1).clone(),
                    box=entry["box"],
                    seconds_per_group=entry.get("seconds_per_group"),
                )
            )
        return images
