"""LLaVA-OneVision: LLaVA-NeXT's tiles, scaled down where there are many of them, and clips."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import LlavaOnevisionModel
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from covervlm.server.models.base import Layout, Part
from covervlm.server.models.llava_next import LlavaNext, LlavaNextAdapter
from covervlm.server.models.pictures import Cost, check_frames, frame_cost, frame_pixels, tile_cost

_RATIO = "anyres_max_9"


class LlavaOnevision(LlavaNext):
    """Shape: (width, height) of an image, or (frames,) of a clip.

    An image's tokens are LLaVA-NeXT's, but a merged grid of far more cells than nine tiles have is scaled down; a cell
    then belongs to the tile that its centre lies in. A clip's are those of its frames, each scaled to half its side,
    and one newline token. Tiles are cut of every image of a prompt, as vLLM does.
    """

    placeholder_fields = ("image_token_id", "video_token_id")

    @classmethod
    def problems(cls, config: Any) -> Iterator[str]:
        yield from super().problems(config)
        if config.vision_aspect_ratio != _RATIO:
            yield f"vision_aspect_ratio is {config.vision_aspect_ratio!r}; only {_RATIO!r} is supported"

    def cost(self, width: int, height: int, image_processor: Any, *, frames: int | None = None) -> Cost:
        if frames is None:
            return tile_cost(width, height, image_processor)
        return frame_cost(width, height, image_processor, frames)

    def clip_shape(self, width: int, height: int, frames: int, image_processor: Any) -> tuple[int, ...]:
        return (frames,)

    def clip_pixels(self, frames: Sequence[Image], image_processor: Any) -> Tensor:
        """(frames, 3, H, W)."""
        return frame_pixels(frames, image_processor)

    def packed(self, values: Tensor, shape: tuple[int, ...], newline: Tensor | None = None) -> Tensor:
        """(rows, x): scaled and joined as transformers' own model does it, with newlines (x,) if they are given."""
        model: Any = LlavaOnevisionModel  # whose methods read nothing but the configuration
        if len(shape) == 1:
            rows = model.apply_pooling(self, values).flatten(0, 1)
            return rows if newline is None else torch.cat([rows, newline[None]])
        width, height = shape
        crops = 1 + math.prod(self._tiles(width, height))  # vLLM has empty ones after them
        [packed], _ = model.pack_image_features(self, [values[:crops]], [(height, width)], newline, _RATIO)
        return packed

    def _tiles(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of the tiles of an image."""
        pinpoints, image_size = self.config.image_grid_pinpoints, self.config.vision_config.image_size
        rows, columns = get_anyres_image_grid_shape((height, width), pinpoints, image_size)
        return rows, columns

    def _layout(self, shape: tuple[int, ...]) -> Layout:
        if len(shape) == 1:
            across = -(-self.side // 2)
            moments = torch.arange(shape[0] * across**2).view(shape[0], -1)
            return Layout(moments.numel() + 1, tuple(Part(moment, moment, (across, across)) for moment in moments))
        crops, places = self._places(*shape)
        rows = (crops >= 0).cumsum(0) - 1
        parts = []
        for crop in range(int(crops.max()) + 1):
            positions = (crops == crop).nonzero()[:, 0]
            if len(positions):
                columns = int((places[positions, 0] == places[positions[0], 0]).sum())
                parts.append(Part(positions, rows[positions], (len(positions) // columns, columns)))
        return Layout(len(crops), tuple(parts))

    def _places(self, width: int, height: int) -> tuple[Tensor, Tensor]:
        """For each token of an image its crop, -1 for a newline, and its row and column: in the base crop, (0, 0) the
        first, or in the merged grid. They are what packing makes of coordinates in the place of tokens."""
        side, patches = self.side, self.side**2
        down, across = self._tiles(width, height)
        merged = torch.cartesian_prod(torch.arange(down * side), torch.arange(across * side)).float()
        tiles = merged.view(down, side, across, side, 2).transpose(1, 2).reshape(-1, patches, 2)
        base = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()[None]
        places = self.packed(torch.cat([base, tiles]), (width, height), torch.full((2,), torch.nan))
        places = (places * 256).round() / 256  # cells of one row say the same, whatever weights they were made with
        row, column = ((places + 0.5) // side).T
        crops = (1 + row * across + column).nan_to_num(-1).long()
        crops[:patches] = 0
        return crops, places


class LlavaOnevisionAdapter(LlavaNextAdapter):
    """Any transformers checkpoint of `LlavaOnevisionForConditionalGeneration`."""

    describes = LlavaOnevision

    def preprocess_video(self, frames: Sequence[Image], fps: float) -> Mapping[str, Any]:
        """As `preprocess`, of a clip: pixel_values (frames, 3, H, W), and seconds_per_group."""
        check_frames(frames)
        return {
            "pixel_values": self.architecture.clip_pixels(frames, self.chat.image_processor),
            "shape": (len(frames),),
            "box": None,
            "seconds_per_group": 1 / fps,
        }
