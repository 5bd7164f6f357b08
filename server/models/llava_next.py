"""LLaVA-NeXT: a small view of the whole image and high-resolution tiles, each pruned on its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from covervlm.server.models.base import ImageTokens, Region
from covervlm.server.models.llava import LlavaAdapter


class LlavaNextAdapter(LlavaAdapter):
    """Any transformers checkpoint of `LlavaNextForConditionalGeneration`.

    An image's tokens are those of the base crop, then the tiles' merged grid row by row without what unpadding cuts
    off, a newline token after each row. The newlines belong to no region, so a pruned image has none.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self.vision_tokens = None

    def preprocess(self, image: Image) -> Mapping[str, Any]:
        """pixel_values (crops, 3, H, W) and image_size (2,), height and width of the original."""
        inputs = self.chat.image_processor(image, return_tensors="pt")
        return {"pixel_values": inputs.pixel_values[0], "image_size": inputs.image_sizes[0]}

    @torch.inference_mode()
    def encode(self, inputs: Sequence[Mapping[str, Any]], *, cls_attention: bool = False) -> list[ImageTokens]:
        counts = [len(entry["pixel_values"]) for entry in inputs]
        features, tokens, attention = self._look(torch.cat([entry["pixel_values"] for entry in inputs]), cls_attention)
        images, start = [], 0
        for entry, crops in zip(inputs, counts, strict=True):
            own = slice(start, start + crops)
            rows = attention[own] if attention is not None else None
            images.append(self._packed(tokens[own], features[own], rows, entry["image_size"]))
            start += crops
        return images

    def _packed(self, tokens: Tensor, features: Tensor, attention: Tensor | None, size: Tensor) -> ImageTokens:
        """One image from tokens (crops, n, d), features (crops, n, d_v) and CLS attention (crops, n)."""
        crops, patches, _ = tokens.shape
        # transformers packs the patches' numbers like the patches, which tells where each of them went.
        numbers = torch.arange(crops * patches, device=tokens.device).view(crops, patches, 1)
        places = self._pack(numbers, size, torch.full((1,), -1, device=tokens.device))[:, 0]
        regions = []
        for crop in range(crops):
            positions = ((places >= crop * patches) & (places < (crop + 1) * patches)).nonzero().flatten()
            if not len(positions):
                continue  # a tile of nothing but padding
            left = places[positions] - crop * patches
            columns = int((left // self._side == left[0] // self._side).sum())
            row = attention[crop, left] if attention is not None else None
            regions.append(Region(positions, features[crop, left], (len(left) // columns, columns), cls_attention=row))
        return ImageTokens(tokens=self._pack(tokens, size, self.model.model.image_newline), regions=tuple(regions))

    def _pack(self, crops: Tensor, size: Tensor, newline: Tensor) -> Tensor:
        strategy = self.model.config.vision_feature_select_strategy
        return self.model.model.pack_image_features([crops], [size], strategy, image_newline=newline)[0][0]
