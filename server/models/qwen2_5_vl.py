"""Qwen2.5-VL: images and clips of any size, windowed vision attention, three-axis positions (M-RoPE)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL.Image import Image, Resampling
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.vision_utils import get_vision_window_index

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import ImagePart, VideoPart
from covervlm.server.models.base import Adapter, Architecture, ImageTokens, Layout, Part, Scaling
from covervlm.server.models.pictures import Cost, check_frames, strips

_FRAME_TOKENS = 768
"""The most cells of one frame of a clip, as in Qwen's own video pipeline: a still image may have far more."""


class Qwen2_5_VL(Architecture):
    """Shape: (rows, columns) of merged patches, before them the number of moments of a clip."""

    pruner_params: ClassVar[Mapping[str, float]] = {"tau_text": 0.01}
    every_word = True
    free_resolution = True
    placeholder_fields: ClassVar[Sequence[str]] = ("image_token_id", "video_token_id")

    @classmethod
    def problems(cls, config: Any) -> Iterator[str]:
        text = config.get_text_config()
        rope = getattr(text, "rope_parameters", None) or {}
        sections = rope.get("mrope_section")
        half = (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads) // 2
        if sections is None or sum(sections) != half:
            yield f"text_config.rope_parameters.mrope_section is {sections}; it should split {half} into three"
        if config.vision_config.in_channels != 3:
            yield f"vision_config.in_channels is {config.vision_config.in_channels}; images have 3"

    def cost(self, width: int, height: int, image_processor: Any, *, frames: int | None = None) -> Cost:
        across, down = _resized(width, height, image_processor, _most_pixels(image_processor, clip=frames is not None))
        together = image_processor.temporal_patch_size
        values = -(-(frames or 1) // together) * together * 3 * across * down
        # No shape blows up: Qwen's rules bound how thin an image may be, and its processor's settings what it becomes.
        return Cost(across * max(down, height), values, max(width * height, across * down))

    def clip_shape(self, width: int, height: int, frames: int, image_processor: Any) -> tuple[int, ...]:
        across, down = _resized(width, height, image_processor, _most_pixels(image_processor, clip=True))
        side = image_processor.patch_size * image_processor.merge_size
        return -(-frames // image_processor.temporal_patch_size), down // side, across // side

    def clip_pixels(self, frames: Sequence[Image], image_processor: Any) -> Tensor:
        """(patches, values)."""
        size = _resized(*frames[0].size, image_processor, _most_pixels(image_processor, clip=True))
        return _clip_patches(frames, image_processor, size)

    def _layout(self, shape: tuple[int, ...]) -> Layout:
        *times, rows, columns = shape
        moments = torch.arange(rows * columns * math.prod(times)).view(-1, rows * columns)
        return Layout(moments.numel(), tuple(Part(moment, moment, (rows, columns)) for moment in moments))


class Qwen2_5_VLAdapter(Adapter):
    """Any transformers checkpoint of `Qwen2_5_VLForConditionalGeneration`."""

    describes = Qwen2_5_VL
    position_axes = 3

    def preprocess(self, image: Image) -> Mapping[str, Any]:
        """pixel_values (patches, values) and grid (3,): temporal groups, rows and columns of patches."""
        processor = self.chat.image_processor
        return _patches(image, processor, _resized(*image.size, processor, _most_pixels(processor, clip=False)))

    def preprocess_video(self, frames: Sequence[Image], fps: float) -> Mapping[str, Any]:
        """As `preprocess`, of a clip: frames of one size, `fps` of them to a second, joined two by two.

        Also seconds_per_group. An odd last frame is repeated. Raises InvalidRequest where sizes differ.
        """
        check_frames(frames)
        processor = self.chat.image_processor
        size = _resized(*frames[0].size, processor, _most_pixels(processor, clip=True))
        return self._clip(frames, fps, size)

    def scaling(self, part: ImagePart | VideoPart, budget: Callable[[int], int]) -> Scaling | None:
        processor, clip = self.chat.image_processor, isinstance(part, VideoPart)
        width, height = part.frames[0].size if isinstance(part, VideoPart) else part.image.size
        moments = -(-len(part.frames) // processor.temporal_patch_size) if isinstance(part, VideoPart) else 1
        side = processor.patch_size * processor.merge_size
        across, down = _resized(width, height, processor, _most_pixels(processor, clip=clip))
        total = moments * (across // side) * (down // side)
        most = budget(total)
        return None if most >= total else Scaling(scaled_size(width, height, side, max(1, most // moments)), total)

    def preprocess_scaled(self, part: ImagePart | VideoPart, scaling: Scaling) -> Mapping[str, Any]:
        if isinstance(part, VideoPart):
            check_frames(part.frames)
            return self._clip(part.frames, part.fps, scaling.size)
        return _patches(part.image, self.chat.image_processor, scaling.size)

    def _clip(self, frames: Sequence[Image], fps: float, size: tuple[int, int]) -> dict[str, Any]:
        processor = self.chat.image_processor
        rows, columns = size[1] // processor.patch_size, size[0] // processor.patch_size
        return {
            "pixel_values": (pixels := _clip_patches(frames, processor, size)),
            "grid": torch.tensor([len(pixels) // (rows * columns), rows, columns]),
            "seconds_per_group": processor.temporal_patch_size / fps,
        }

    @torch.inference_mode()
    def encode(self, inputs: Sequence[Mapping[str, Any]], *, cls_attention: bool = False) -> list[ImageTokens]:
        if cls_attention:
            raise ValueError("the vision towers of Qwen's models have no CLS token")
        visual = self.model.model.visual
        pixels = torch.cat([entry["pixel_values"] for entry in inputs]).to(visual.device, visual.dtype)
        grids = torch.stack([entry["grid"] for entry in inputs])
        output = visual(pixels, grid_thw=grids.to(visual.device))
        features = self._features(output.last_hidden_state, grids)
        deeper = torch.cat(layers, dim=1) if (layers := getattr(output, "deepstack_features", None)) else None
        images, start = [], 0
        for entry in inputs:
            times, rows, columns = entry["grid"].tolist()
            shape = (times, rows // visual.spatial_merge_size, columns // visual.spatial_merge_size)
            own = slice(start, start := start + times * shape[1] * shape[2])
            images.append(
                ImageTokens(
                    self.architecture.layout(shape),
                    # Cloned, so that a cached image does not keep the whole batch alive.
                    output.pooler_output[own].clone(),
                    features[own].clone(),
                    seconds_per_group=entry.get("seconds_per_group"),
                    deeper=None if deeper is None else deeper[own].clone(),
                )
            )
        return images

    def _features(self, states: Tensor, grids: Tensor) -> Tensor:
        """(tokens, d_v) float32: the tower's last states (patches, d_v), averaged for each token."""
        return group_features(states, grids, self.model.model.visual)

    @torch.inference_mode()
    def assemble(
        self, ids: Sequence[int], images: Sequence[ImageTokens], kept: Sequence[Tensor | None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Every token, of image or text, has the position that it has in the unpruned prompt."""
        embeddings, _ = super().assemble(ids, images, kept)
        masks: list[Tensor] = []
        for image, places in zip(images, kept or [None] * len(images), strict=True):
            masks += _mask(image.layout.total, places).split(image.layout.counts())
        stays, start = [], 0
        for slot, mask in zip(self.chat.slots(ids), masks, strict=True):
            stays += [_mask(slot - start), mask]
            start = slot + 1
        stays.append(_mask(len(ids) - start))
        positions = self._positions(torch.tensor(self.expanded(ids, list(map(len, masks)))), images)
        following = positions.max().expand(self.position_axes, 1) + 1
        return embeddings, torch.cat([positions[:, torch.cat(stays)], following], dim=1).to(embeddings.device)

    def _positions(self, ids: Tensor, images: Sequence[ImageTokens]) -> Tensor:
        """transformers' M-RoPE positions (3, T) of the unpruned prompt."""
        config = self.model.config
        kinds = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
        clips = [image for image in images if image.seconds_per_group is not None]
        stills = [image for image in images if image.seconds_per_group is None]
        positions, _ = self.model.model.get_rope_index(
            ids[None],
            mm_token_type_ids=kinds[None],
            image_grid_thw=self._grids(stills) if stills else None,
            video_grid_thw=self._grids(clips) if clips else None,
            second_per_grid_ts=torch.tensor([clip.seconds_per_group for clip in clips]) if clips else None,
        )
        return positions[:, 0]

    def _grids(self, images: Sequence[ImageTokens]) -> Tensor:
        """(images, 3): temporal groups, rows and columns of patches."""
        merged = self.model.model.visual.spatial_merge_size
        parts = [image.layout.parts for image in images]
        return torch.tensor([[len(part), part[0].grid[0] * merged, part[0].grid[1] * merged] for part in parts])


def _most_pixels(processor: Any, *, clip: bool) -> int:
    most: int = processor.size["longest_edge"]
    return min(most, _FRAME_TOKENS * (processor.patch_size * processor.merge_size) ** 2) if clip else most


def _resized(width: int, height: int, processor: Any, most: int) -> tuple[int, int]:
    """(width, height) of an image for the tower. Raises InvalidRequest where Qwen's rules refuse it."""
    least = processor.size["shortest_edge"]
    try:
        down, across = smart_resize(height, width, processor.patch_size * processor.merge_size, least, most)
    except ValueError as error:
        raise InvalidRequest(
            f"The image of {width} x {height} pixels is too narrow for this model: {error}; cut it into pieces or make "
            "its longer side shorter.",
            param="messages",
            code="image_too_large",
        ) from error
    return across, down


def scaled_size(width: int, height: int, side: int, cells: int) -> tuple[int, int]:
    """(width, height) in pixels, of as many cells of this side as there may be and about the shape of the picture.

    Qwen's own rule rounds both sides down to whole cells; here either is rounded up where there is room, so that the
    budget is met as closely as pruning meets it. A picture thinner than its cells gets thicker.
    """
    scale = math.sqrt(cells / (width * height))
    down, across = (max(1, math.floor(length * scale)) for length in (height, width))
    rooms = [(min(r, cells), min(c, cells)) for r in (down, down + 1) for c in (across, across + 1)]
    fitting = [(r, c) for r, c in rooms if r * c <= cells] or [(1, cells) if across > down else (cells, 1)]
    rows, columns = max(fitting, key=lambda one: one[0] * one[1])
    return columns * side, rows * side


def _patches(image: Image, processor: Any, size: tuple[int, int]) -> dict[str, Any]:
    """What Qwen's processor makes of an RGB image of this size for the tower, a strip of its patches at a time."""
    picture = image.resize(size, Resampling(processor.resample))
    rows, columns = size[1] // processor.patch_size, size[0] // processor.patch_size
    values = torch.empty(rows * columns, 3 * processor.temporal_patch_size * processor.patch_size**2)
    start = 0
    for box in strips(*size, processor.patch_size * processor.merge_size):
        part = processor(picture.crop(box), do_resize=False, return_tensors="pt").pixel_values
        values[start : (start := start + len(part))] = part
    return {"pixel_values": values, "grid": torch.tensor([1, rows, columns])}


def _clip_patches(frames: Sequence[Image], processor: Any, size: tuple[int, int]) -> Tensor:
    """(patches, values): those of a clip's moments one after another."""
    together, area = processor.temporal_patch_size, processor.patch_size**2
    groups = -(-len(frames) // together)
    values = torch.empty(0)
    for number in range(groups * together):
        # A still image repeats itself along the temporal axis of its patches; a clip's frames take turns there.
        inputs = _patches(frames[min(number, len(frames) - 1)], processor, size)
        still = inputs["pixel_values"].unflatten(1, (-1, together, area))
        if not number:
            values = torch.empty(groups, *still.shape)
        values[number // together, :, :, number % together] = still[:, :, 0]
    return values.flatten(2).flatten(0, 1)


def _mask(count: int, places: Tensor | None = None) -> Tensor:
    """(count,) bool: True everywhere, or at some places alone."""
    if places is None:
        return torch.ones(count, dtype=torch.bool)
    return torch.zeros(count, dtype=torch.bool).index_fill(0, places, True)


def group_features(states: Tensor, grids: Tensor, visual: Any) -> Tensor:
    """(groups, d_v) float32: the mean of each merge group, in the raster order in which the merger leaves them.

    states: (patches, d_v) from the tower's last block, which has the groups in the order of its attention windows.
    grids: (images, 3), temporal groups, rows and columns of patches; on the CPU.
    """
    windows, _ = get_vision_window_index(grids, visual.spatial_merge_size, visual.window_size, visual.patch_size)
    groups = states.float().view(len(windows), visual.spatial_merge_unit, -1).mean(dim=1)
    return groups[windows.argsort().to(groups.device)]
