"""Qwen2.5-VL: images and clips of any size, windowed vision attention, three-axis positions (M-RoPE)."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2_5_VLProcessor

# Imported from its module: older releases of transformers refuse the public name where torchvision is missing.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.vision_utils import get_vision_window_index

from covervlm.pruners.question import all_words
from covervlm.server.engines.base import InvalidRequest, Message
from covervlm.server.models.base import AssembledPrompt, ImageTokens, Kept, Prompt, Region
from covervlm.server.models.language import embed, eos_ids, load_model, splice
from covervlm.server.models.processor import ChatProcessor
from covervlm.server.models.registry import Checkpoint

_FRAME_PIXELS = 768 * 28 * 28
"""The most pixels of one frame of a clip, as in Qwen's own video pipeline: a still image may have far more."""


class _Processor:
    """Tokenizer, image processor and chat template; transformers' own processor cannot be built without torchvision."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, image_processor: Any, chat_template: str | None) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.chat_template = chat_template

    def apply_chat_template(self, chat: list[dict[str, Any]], **options: Any) -> Any:
        return self.tokenizer.apply_chat_template(chat, chat_template=self.chat_template, **options)


class Qwen2_5_VLAdapter:
    """Any transformers checkpoint of `Qwen2_5_VLForConditionalGeneration`."""

    pruner_params: Mapping[str, float] = {"tau_text": 0.01}
    position_axes = 3
    has_cls_token = False
    vision_tokens: int | None = None

    def __init__(self, model: Any, processor: Any) -> None:
        config = model.config
        self.model = model
        self.language_model = model.model.language_model
        self.lm_head = model.lm_head
        self._image_id, self._video_id = config.image_token_id, config.video_token_id
        names = processor.tokenizer.convert_ids_to_tokens([self._image_id, self._video_id])
        self.chat = ChatProcessor(processor, dict(zip(names, (self._image_id, self._video_id), strict=True)))
        self.context_length: int = config.text_config.max_position_embeddings
        self.eos_ids = eos_ids(model)
        self.embeddings = model.get_input_embeddings()

    @classmethod
    def load(cls, checkpoint: Checkpoint) -> Self:
        """Read model, tokenizer and image processor from a checkpoint, safetensors only."""
        template = Qwen2_5_VLProcessor.get_processor_dict(checkpoint.path)[0].get("chat_template")
        processor = _Processor(
            AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=checkpoint.trust_remote_code),
            AutoImageProcessor.from_pretrained(checkpoint.path),
            template if isinstance(template, str) else None,
        )
        return cls(load_model(checkpoint), processor)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.chat.tokenizer

    def tokenize(self, messages: Sequence[Message]) -> Prompt:
        return self.chat.tokenize(messages)

    def preprocess(self, image: Image) -> Mapping[str, Any]:
        """pixel_values (patches, values) and grid (3,): temporal groups, rows and columns of patches."""
        inputs = self._patches([image])
        return {"pixel_values": inputs.pixel_values, "grid": inputs.image_grid_thw[0]}

    def preprocess_video(self, frames: Sequence[Image], fps: float) -> Mapping[str, Any]:
        """As `preprocess`, of a clip: frames of one size, `fps` of them to a second, joined two by two.

        Also seconds_per_group. An odd last frame is repeated. Raises InvalidRequest where sizes differ.
        """
        if len({frame.size for frame in frames}) != 1:
            raise InvalidRequest("A video needs at least one frame, and all of its frames must have the same size.")
        processor = self.chat.image_processor
        together = processor.temporal_patch_size
        size = {
            "shortest_edge": processor.size["shortest_edge"],
            "longest_edge": min(processor.size["longest_edge"], _FRAME_PIXELS),
        }
        inputs = self._patches([*frames, *[frames[-1]] * (-len(frames) % together)], size=size)
        _, rows, columns = inputs.image_grid_thw[0].tolist()
        groups = len(inputs.image_grid_thw) // together
        # A still image repeats itself along the temporal axis of its patches; a clip's frames take turns there.
        area = processor.patch_size**2
        stills = inputs.pixel_values.view(groups, together, rows * columns, -1, together, area)[:, :, :, :, 0]
        return {
            "pixel_values": stills.permute(0, 2, 3, 1, 4).reshape(groups * rows * columns, -1),
            "grid": torch.tensor([groups, rows, columns]),
            "seconds_per_group": together / fps,
        }

    @torch.inference_mode()
    def encode(self, inputs: Sequence[Mapping[str, Any]], *, cls_attention: bool = False) -> list[ImageTokens]:
        if cls_attention:
            raise ValueError("the vision tower of Qwen2.5-VL has no CLS token")
        visual = self.model.model.visual
        pixels = torch.cat([entry["pixel_values"] for entry in inputs]).to(visual.device, visual.dtype)
        grids = torch.stack([entry["grid"] for entry in inputs])
        output = visual(pixels, grid_thw=grids.to(visual.device))
        # The tower's last block leaves merge groups in the order of its attention windows, the merger in raster order.
        windows, _ = get_vision_window_index(grids, visual.spatial_merge_size, visual.window_size, visual.patch_size)
        groups = output.last_hidden_state.float().view(len(windows), visual.spatial_merge_unit, -1).mean(dim=1)
        features = groups[windows.argsort().to(groups.device)]
        images, start = [], 0
        for entry in inputs:
            times, rows, columns = entry["grid"].tolist()
            rows, columns = rows // visual.spatial_merge_size, columns // visual.spatial_merge_size
            area, end = rows * columns, start + times * rows * columns
            regions = tuple(
                Region(
                    torch.arange(time * area, (time + 1) * area, device=features.device),
                    features[start + time * area : start + (time + 1) * area].clone(),
                    (rows, columns),
                )
                for time in range(times)
            )
            images.append(
                ImageTokens(
                    # Cloned, so that a cached image does not keep the whole batch alive.
                    tokens=output.pooler_output[start:end].clone(),
                    regions=regions,
                    grid=(rows, columns) if times == 1 else None,
                    layout={"grid": entry["grid"], "seconds_per_group": entry.get("seconds_per_group")},
                )
            )
            start = end
        return images

    @torch.inference_mode()
    def question_embeddings(self, question: str) -> Tensor:
        words = all_words(f"Question: {question}") if question.strip() else []
        return embed(self.embeddings, self.chat.word_ids(words))

    @torch.inference_mode()
    def assemble(self, prompt: Prompt, images: Sequence[Kept]) -> AssembledPrompt:
        """Every token, of image or text, has the position that it has in the unpruned prompt."""
        embeddings = splice(self.embeddings, prompt, images)
        ids: list[int] = []
        kept = []
        start = 0
        for slot, image in zip(prompt.image_slots, images, strict=True):
            ids += prompt.ids[start:slot]
            kept.append(torch.arange(len(ids) - slot + start, len(ids)))
            whole = torch.arange(len(image.image)) if image.positions is None else image.positions.cpu()
            kept.append(len(ids) + whole)
            ids += [prompt.ids[slot]] * len(image.image)
            start = slot + 1
        kept.append(torch.arange(len(ids), len(ids) + len(prompt.ids) - start))
        ids += prompt.ids[start:]
        positions = self._positions(torch.tensor(ids), [image.image for image in images])
        return AssembledPrompt(
            embeddings, positions[:, torch.cat(kept)].to(embeddings.device), next_position=int(positions.max()) + 1
        )

    def _positions(self, ids: Tensor, images: Sequence[ImageTokens]) -> Tensor:
        """transformers' M-RoPE positions (3, T) of the unpruned prompt."""
        kinds = (ids == self._image_id).int() + 2 * (ids == self._video_id).int()
        stills = [image.layout["grid"] for image in images if image.layout["seconds_per_group"] is None]
        clips = [image.layout for image in images if image.layout["seconds_per_group"] is not None]
        positions, _ = self.model.model.get_rope_index(
            ids[None],
            mm_token_type_ids=kinds[None],
            image_grid_thw=torch.stack(stills) if stills else None,
            video_grid_thw=torch.stack([clip["grid"] for clip in clips]) if clips else None,
            second_per_grid_ts=torch.tensor([clip["seconds_per_group"] for clip in clips]) if clips else None,
        )
        return positions[:, 0]

    def _patches(self, images: list[Image], **options: Any) -> Any:
        try:
            return self.chat.image_processor(images, return_tensors="pt", **options)
        except ValueError as error:
            raise InvalidRequest(f"The model's processor refuses this image: {error}", param="messages") from error
