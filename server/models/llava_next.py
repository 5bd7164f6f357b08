"""LLaVA-NeXT: a small view of the whole image and high-resolution tiles, each pruned on its own."""

from collections.abc import Iterator
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from covervlm.server.models.base import Box, ImageTokens, Layout, Part
from covervlm.server.models.llava import Llava, LlavaAdapter
from covervlm.server.models.pictures import Cost, tile_cost, tile_pixels


class LlavaNext(Llava):
    """Shape: (width, height) of the image.

    An image's tokens are those of the base crop, then the tiles' merged grid row by row without what unpadding cuts
    off, a newline token after each row. The newlines belong to no part, so a pruned image has none.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vision_tokens = None

    @classmethod
    def problems(cls, config: Any) -> Iterator[str]:
        yield from super().problems(config)
        tile = config.vision_config.image_size
        for height, width in config.image_grid_pinpoints:
            if height % tile or width % tile or not height * width:
                yield f"image_grid_pinpoints has {height}x{width}, which tiles of {tile} pixels do not fill"

    def shape(self, width: int, height: int, image_processor: Any) -> tuple[int, int]:
        return width, height

    def box(self, width: int, height: int, image_processor: Any) -> Box | None:
        return None

    def cost(self, width: int, height: int, image_processor: Any, *, frames: int | None = None) -> Cost:
        return tile_cost(width, height, image_processor)

    def _layout(self, shape: tuple[int, ...]) -> Layout:
        side, patches = self.side, self.side**2
        rows = self._rows(*shape)
        parts = []
        for crop in range(1 + int(rows.max()) // patches):
            positions = ((rows >= crop * patches) & (rows < (crop + 1) * patches)).nonzero().flatten()
            if not len(positions):
                continue  # a tile of nothing but padding
            left = rows[positions] - crop * patches
            columns = int((left // side == left[0] // side).sum())
            parts.append(Part(positions, rows[positions], (len(left) // columns, columns)))
        return Layout(len(rows), tuple(parts))

    def _rows(self, width: int, height: int) -> Tensor:
        """For each token of the sequence, its row in the tower's output; -1 for a newline."""
        side, patches = self.side, self.side**2
        pinpoints, image_size = self.config.image_grid_pinpoints, self.config.vision_config.image_size
        down, across = get_anyres_image_grid_shape((height, width), pinpoints, image_size)
        numbers = torch.arange(patches, patches * (1 + down * across)).view(down, across, side, side)
        merged = numbers.permute(0, 2, 1, 3).reshape(1, down * side, across * side)
        merged = unpad_image(merged, (height, width))[0]
        tiles = torch.cat([merged, torch.full((len(merged), 1), -1)], dim=1)
        return torch.cat([torch.arange(patches), tiles.flatten()])


class LlavaNextAdapter(LlavaAdapter):
    """Any transformers checkpoint of `LlavaNextForConditionalGeneration`."""

    describes = LlavaNext

    def _pixels(self, image: Image, image_processor: Any) -> Tensor:
        return tile_pixels(image, image_processor)

    @torch.inference_mode()
    def whole(self, image: ImageTokens) -> Tensor:
        rows = image.layout.rows.to(image.tokens.device)[:, None]
        return torch.where(rows < 0, self.model.model.image_newline, image.tokens[rows[:, 0].clamp(min=0)])
