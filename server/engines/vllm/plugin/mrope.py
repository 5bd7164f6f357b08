"""What Qwen's models share inside vLLM: kept tokens keep the positions that they have in the unpruned prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.platforms import current_platform

from covervlm.server.engines.vllm.plugin.model import PruningModel, pixels_of
from covervlm.server.engines.vllm.plugin.plan import FIELDS, Plan
from covervlm.server.engines.vllm.plugin.processor import Options, PruningProcessor

_DIGITS = torch.tensor([256**2, 256, 1])
_CHANNELS = 1 + 3 * len(_DIGITS)
"""Columns after an image's embeddings: 1 if it is pruned, then moment, row and column of the token, each as digits to
the base 256, which every float dtype holds exactly."""
_GRIDS = {"pixel_values": "image_grid_thw", "pixel_values_videos": "video_grid_thw"}


Grids = Iterator[tuple[int, np.ndarray, int]]
"""Where an image, or a clip or a moment of it, begins in a prompt, with positions (3, moments, tokens) of all of it
from 0 on, and how many of its tokens the prompt has."""


class QwenProcessor(PruningProcessor):
    """Mixed into a processor of vLLM's for pictures of any size."""

    joins_moments = False

    def _shape(self, width: int, height: int, options: Options) -> tuple[int, int]:
        processor = self.info.get_image_processor(**options)
        size, _ = self.info._get_vision_info(
            image_width=width, image_height=height, image_processor=processor, mm_kwargs=options
        )
        vision = self.info.get_hf_config().vision_config
        pixels = vision.patch_size * vision.spatial_merge_size
        return size.height // pixels, size.width // pixels

    def _packed_clips(self, pixels: Sequence[Tensor], plans: Sequence[Plan]) -> dict[str, Any]:
        merged = self.info.get_hf_config().vision_config.spatial_merge_size
        grids = [[times, rows * merged, columns * merged] for times, rows, columns in (plan.shape for plan in plans)]
        # vLLM's own class asks for a time, which is not read: a plan has the pace.
        return {"pixel_values_videos": torch.cat(list(pixels)), "video_grid_thw": torch.tensor(grids)}


class PruningQwen(PruningModel):
    """Mixed into vLLM's class of a model with M-RoPE, which then also takes pruned images and clips.

    A subclass says how wide a token is (`_width`), how to run the tower, where an image's tokens lie (`_grids`), and
    when a clip's moments are (`_moments`).

    Which tokens are kept is known only after the tower ran, and so are their positions. vLLM's model runner corrects
    positions then, through an interface made for its own pruning of videos, which therefore cannot be used as well.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        multimodal = vllm_config.model_config.multimodal_config
        if multimodal.video_pruning_rate:
            raise ValueError("--video-pruning-rate and covervlm's pruning of images exclude each other")
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise ValueError(
                "vLLM corrects positions of pruned images on the first pipeline stage only: serve Qwen's models with "
                "--tensor-parallel-size, or without the covervlm plugin (VLLM_PLUGINS)"
            )
        # Asked by the model runner after loading. A partial, because configurations may be pickled.
        object.__setattr__(multimodal, "is_multimodal_pruning_enabled", partial(bool, True))
        if current_platform.is_cpu():  # whose model runner loads models in its own way, without asking
            from vllm.v1.worker.cpu_model_runner import CPUModelRunner

            CPUModelRunner.is_multimodal_pruning_enabled = property(lambda _: True, lambda *_: None)

    # Vision.

    @property
    def _width(self) -> int:
        """Columns of what the tower makes of a token."""
        raise NotImplementedError

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """One (tokens, width + channels) tensor per image or clip."""
        embeddings = super().embed_multimodal(**kwargs)
        return [e if e.shape[1] > self._width else nn.functional.pad(e, (0, _CHANNELS)) for e in embeddings]

    def _run_tower(self, images: Sequence[dict[str, Any]], first: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """What the tower makes of images, what its merger was given, and the images' grids (n, 3).

        first: the merger's first layer. vLLM bypasses hooks of the merger itself, and this gets the same input.
        """
        grids = torch.cat([image[name] for image in images for name in _GRIDS.values() if name in image]).cpu()
        seen: list[Tensor] = []
        hook = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            output = self.visual(torch.cat([pixels_of(image) for image in images]), grid_thw=grids.tolist())
        finally:
            hook.remove()
        return output, seen[0], grids

    def _only(self, kwargs: dict[str, Any], wanted: Sequence[int]) -> dict[str, Any]:
        """The inputs of some of a batch's images; pixels are those of all images one after another."""
        pixels, grid = next((pixels, grid) for pixels, grid in _GRIDS.items() if grid in kwargs)
        grids = kwargs[grid]
        each = kwargs[pixels].split(grids.prod(-1).tolist())
        return {pixels: torch.cat([each[i] for i in wanted]), grid: grids[list(wanted)]}

    def _moments(self, plan: Plan) -> Tensor:
        """(moments,) int64: how far each moment of a clip lies from the first on the axis of time."""
        raise NotImplementedError

    def _finished(self, tokens: Tensor, positions: Tensor, plan: Plan) -> Tensor:
        *_, rows, columns = plan.shape
        moment, place = positions // (rows * columns), positions % (rows * columns)
        time = self._moments(plan)[moment] if plan.frames else torch.zeros_like(moment)
        places = torch.stack([time, place // columns, place % columns], dim=1)
        digits = (places[:, :, None] // _DIGITS % 256).flatten(1)
        return torch.cat([tokens, nn.functional.pad(digits, (1, 0), value=1).to(tokens)], dim=1)

    def get_encoder_cudagraph_config(self) -> Any:
        """No CUDA graphs of the tower: they bypass `embed_multimodal`."""
        return replace(super().get_encoder_cudagraph_config(), modalities=[])  # type: ignore[misc]

    # Positions.

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[MultiModalFeatureSpec]
    ) -> tuple[Tensor, int]:
        """Positions (3, T), and how far the next token's lies from T.

        Text has the positions of the unpruned prompt. Kept tokens stand at their moment, and in the image's first row
        and column until `recompute_mrope_positions` spreads them.
        """
        pieces: list[np.ndarray] = []
        read = position = 0
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            packed = feature.data.get(FIELDS[feature.modality])
            plan = None if packed is None else Plan.from_tensor(packed.data)
            for offset, grid, kept in self._grids(input_tokens, feature, plan):
                pieces.append(np.arange(offset - read) + np.full((3, 1), position))
                position += offset - read
                if plan is not None and plan.prunes:
                    own = grid[:, :, : kept // grid.shape[1]].copy()
                    own[1:] = 0
                else:
                    own = grid
                pieces.append(own.reshape(3, -1) + position)
                read = offset + kept
                # Where a clip is longer than wide, vLLM lets the text begin after its end, and transformers before it.
                axes = grid if plan is None else grid[1:]
                position += int(axes.max()) + 1
        rest = len(input_tokens) - read
        pieces.append(np.arange(rest) + np.full((3, 1), position))
        positions = torch.from_numpy(np.concatenate(pieces, axis=1))
        return positions, _following(positions)

    def _grids(self, input_tokens: list[int], feature: MultiModalFeatureSpec, plan: Plan | None) -> Grids:
        """Where an image, a clip or its moments lie."""
        raise NotImplementedError

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """Embeddings without their channels, and the positions with this step's kept tokens where they belong.

        multimodal_embeddings: those of the placeholders from num_computed_tokens on, in order, possibly not all.
        """
        delta = _following(mrope_positions)
        if not len(multimodal_embeddings):
            return [], mrope_positions, delta
        channels = torch.cat([embedding[:, -_CHANNELS:] for embedding in multimodal_embeddings])
        channels = channels.to(mrope_positions.device, torch.int64)
        ids = torch.as_tensor(input_ids, device=mrope_positions.device)
        media = torch.tensor([self.config.image_token_id, self.config.video_token_id], device=ids.device)
        slots = torch.isin(ids, media).nonzero().flatten()
        slots = slots[slots >= num_computed_tokens][: len(channels)]
        pruned = channels[:, 0] == 1
        slots, digits = slots[pruned], channels[pruned, 1:].unflatten(1, (3, -1))
        places = (digits * _DIGITS.to(digits.device)).sum(-1).T
        positions = mrope_positions.clone()
        # All tokens stand at their moments already, so that a second run changes nothing.
        positions[1:, slots] = positions[0, slots] - places[0] + places[1:]
        return [embedding[:, :-_CHANNELS] for embedding in multimodal_embeddings], positions, delta


def _following(positions: Tensor) -> int:
    """How far the next token's position lies from the number of those before it."""
    return int(positions.max()) + 1 - positions.shape[1]
