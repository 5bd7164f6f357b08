"""The front end's side of pruning: budgets and questions to plans, plans to placeholders and cache keys."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import transformers
from PIL import Image
from torch import Tensor
from transformers import BatchFeature
from vllm.inputs import MultiModalHashes, MultiModalInput
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems, VideoProcessorItems
from vllm.multimodal.processing import (
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ProcessorInputs,
    PromptReplacement,
    PromptUpdate,
    PromptUpdateDetails,
)
from vllm.multimodal.processing.context import InputProcessingContext, TimingContext

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.engines.vllm.plugin.plan import FIELD, FIELDS, Plan
from covervlm.server.engines.vllm.plugin.policy import Asked, ServerWide, asked, refusal, server_wide
from covervlm.server.engines.vllm.plugin.question import UserTurns
from covervlm.server.models.base import Architecture, Box, Layout
from covervlm.server.models.pictures import Cost
from covervlm.server.models.processor import ChatProcessor
from covervlm.server.models.registry import architecture_of
from covervlm.server.selection.selector import budget_of, pruned_layout, pruner_for, text_of_turns

Options = Mapping[str, object]
BuildInfo = Callable[[InputProcessingContext], BaseProcessingInfo]


def with_pillow(build: BuildInfo) -> BuildInfo:
    """vLLM's description of a model's processor, but with Pillow's pixels: both engines then keep the same tokens."""

    def built(context: InputProcessingContext) -> BaseProcessingInfo:
        info = build(context)
        plain = info.get_hf_processor

        def get_hf_processor(**options: object) -> Any:
            processor = plain(**options)
            images = processor.image_processor
            if pillow := getattr(transformers, f"{type(images).__name__}Pil", None):
                processor.image_processor = pillow.from_dict(images.to_dict())
            return processor

        info.get_hf_processor = get_hf_processor
        return info

    return built


@dataclass(frozen=True)
class Planned:
    """One request's plans by modality, which take the place of its `vision_prune` option.

    hashes: those of other modalities.
    """

    plans: Mapping[str, tuple[Plan, ...]]
    hashes: MultiModalHashes

    def only(self, wanted: Mapping[str, Sequence[bool]]) -> "Planned":
        plans = {
            modality: tuple(plan for plan, want in zip(own, wanted[modality], strict=True) if want)
            for modality, own in self.plans.items()
        }
        return replace(self, plans=plans)


@dataclass(frozen=True)
class Medium:
    """An image or clip of a request: vLLM's modality, what its layout depends on, and of a clip frames and pace."""

    modality: str
    shape: tuple[int, ...]
    frames: int = 0
    fps: float = 0.0


class PruningProcessor(BaseMultiModalProcessor):
    """Mixed into a processor of vLLM's. Images that lose nothing go the base class's way untouched.

    Clips of covervlm's own engine, which `clip` makes, are planned in any case; those of others are left whole.
    """

    joins_moments: ClassVar[bool] = True
    """Whether a method may pick over all of a clip's moments, so that nobody knows how much of each will be kept."""

    @cached_property
    def architecture(self) -> Architecture:
        return architecture_of(self.info.get_hf_config())

    @cached_property
    def placeholders(self) -> dict[str, int]:
        """The tokens that stand for an image or a clip in a prompt, with their ids."""
        return self.architecture.placeholders(self.info.get_tokenizer())

    @cached_property
    def _default(self) -> ServerWide:
        return server_wide(self.info.get_hf_config())

    @cached_property
    def _chat(self) -> ChatProcessor:
        return ChatProcessor(self.info.get_hf_processor(), self.placeholders)

    @cached_property
    def _turns(self) -> UserTurns:
        return UserTurns(self._chat)

    def layout(self, width: int, height: int, options: Options) -> Layout:
        """The unpruned vision tokens of an image of this size."""
        return self.architecture.layout(self._shape(width, height, options))

    def clip_layout(self, width: int, height: int, frames: int) -> Layout:
        """The unpruned vision tokens of a clip. Raises InvalidRequest where the model reads none."""
        processor = self.info.get_hf_processor().image_processor
        return self.architecture.layout(self.architecture.clip_shape(width, height, frames, processor))

    def cost(self, width: int, height: int, frames: int | None = None) -> Cost:
        """What preprocessing an image of this size takes, or a clip of so many frames. Raises InvalidRequest."""
        return self.architecture.cost(width, height, self.info.get_hf_processor().image_processor, frames=frames)

    def box(self, width: int, height: int) -> Box | None:
        """The area of an image that its grid of tokens covers (`ImageReport.box`)."""
        return self.architecture.box(width, height, self.info.get_hf_processor().image_processor)

    def _shape(self, width: int, height: int, options: Options) -> tuple[int, int]:
        """What a layout depends on of an image of this size."""
        return self.architecture.shape(width, height, self.info.get_hf_processor(**options).image_processor)

    # From the option to plans.

    def apply(self, inputs: ProcessorInputs, timing_ctx: TimingContext) -> MultiModalInput:
        options = dict(inputs.hf_processor_mm_kwargs)
        request = asked(options.pop(FIELD, None), self._default)
        inputs = replace(inputs, hf_processor_mm_kwargs=options)
        if planned := self._plan(request, inputs):
            inputs = replace(inputs, hf_processor_mm_kwargs={**options, FIELD: planned})
        return super().apply(inputs, timing_ctx)

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> ProcessorInputs:
        """Unpruned, so that memory is measured for the worst case."""
        inputs = super().get_dummy_inputs(*args, **kwargs)
        return replace(inputs, hf_processor_mm_kwargs={**inputs.hf_processor_mm_kwargs, FIELD: {"method": "none"}})

    def _plan(self, request: Asked, inputs: ProcessorInputs) -> Planned | None:
        """The plans of images and clips; None where no image loses a token and there are no clips of ours."""
        policy, architecture = request.policy, self.architecture
        offered = self._default.methods
        if offered and policy.method not in (*offered, "none"):
            raise refusal(f"{policy.method[:40]} is not offered here; choose one of {', '.join(offered)}", "method")
        clips = _is_ours(inputs.mm_data_items.get("video"))
        with _refusals():
            pruner = pruner_for(policy, architecture.pruner_params, has_cls_token=architecture.has_cls_token)
            media = self._media(inputs, request) if policy.prunes or clips else []
        if not media:
            return None
        layouts = [architecture.layout(medium.shape) for medium in media]
        with _refusals():
            budgets = [
                budget_of(policy, i, len(layouts), layout.prunable, len(layout.parts))
                for i, layout in enumerate(layouts)
            ]
        pruned = [policy.prunes and budget < layout.prunable for budget, layout in zip(budgets, layouts, strict=True)]
        if not any(pruned) and not clips:
            return None
        question: tuple[int, ...] = ()
        if pruner.uses_text and any(pruned):
            text = request.question
            if text is None:
                text = text_of_turns(policy.guide, self._turns.texts(inputs.prompt))
            question = tuple(architecture.word_ids(self._chat, text, policy.recipe))
        hashes = super()._get_mm_hashes(inputs)
        digests = {modality: iter(own) for modality, own in hashes.items()}
        plans: dict[str, list[Plan]] = {medium.modality: [] for medium in media}
        for medium, layout, budget, prunes in zip(media, layouts, budgets, pruned, strict=True):
            seen = pruned_layout(layout, policy.recipe, pruner)
            if prunes and medium.frames and seen is not layout and not self.joins_moments:
                raise refusal(
                    f"vLLM must know how many tokens of each moment are kept before it looks at a clip, and by its "
                    f"released recipe {policy.method} picks over all moments; use the default recipe",
                    "recipe",
                )
            plan = Plan(
                image=hashlib.sha256(next(digests[medium.modality]).encode()).digest()[:16],  # a name may be any text
                shape=medium.shape,
                method=policy.method,
                budget=budget,
                kept=seen.kept(budget),
                question=question,
                seed=request.seed,
                parameters=tuple((name, value) for name, value in policy.parameters if value is not None),
                recipe=policy.recipe,
                frames=medium.frames,
                fps=medium.fps,
            )
            plans[medium.modality].append(plan if prunes else replace(plan.whole(), kept=layout.total))
        others = {name: keys for name, keys in hashes.items() if name not in plans}
        return Planned({modality: tuple(own) for modality, own in plans.items()}, others)

    def _media(self, inputs: ProcessorInputs, request: Asked) -> list[Medium]:
        """Images and clips in reading order, without what cannot be pruned."""
        options, items = inputs.hf_processor_mm_kwargs, inputs.mm_data_items
        images, clips = items.get("image"), items.get("video")
        if images and not isinstance(images, ImageProcessorItems):
            if request.explicit and request.policy.prunes:
                raise refusal("image embeddings cannot be pruned: send images")
            images = None
        sizes = [images.get_image_size(i) for i in range(len(images))] if images else []
        stills = [Medium("image", self._shape(size.width, size.height, options)) for size in sizes]
        if not _is_ours(clips):
            return stills
        processor = self.info.get_hf_processor(**options).image_processor
        moving = []
        for i, metadata in enumerate(clips.metadata):
            frames = _frames(clips.get(i))
            height, width = frames.shape[1:3]
            shape = self.architecture.clip_shape(width, height, len(frames), processor)
            moving.append(Medium("video", shape, len(frames), metadata[FIELD]))
        config = self.architecture.config
        media = {config.image_token_id: iter(stills), config.video_token_id: iter(moving)}
        return [next(media[token]) for token in inputs.prompt if token in media]

    # From plans to what vLLM sends to its workers and caches.

    def _get_mm_hashes(self, inputs: ProcessorInputs) -> MultiModalHashes:
        planned, _ = _split(inputs.hf_processor_mm_kwargs)
        if planned is None:
            return super()._get_mm_hashes(inputs)
        return {**planned.hashes, **{name: [plan.digest for plan in own] for name, own in planned.plans.items()}}

    def _get_cache_missing_processor_kwargs(
        self, inputs: ProcessorInputs, mm_is_cached: Mapping[str, list[bool]]
    ) -> Options:
        planned, options = _split(inputs.hf_processor_mm_kwargs)
        inputs = replace(inputs, hf_processor_mm_kwargs=options)
        options = super()._get_cache_missing_processor_kwargs(inputs, mm_is_cached)
        if planned is None:
            return options
        missing = {modality: [not cached for cached in own] for modality, own in mm_is_cached.items()}
        return {**options, FIELD: planned.only(missing)}

    def _apply_hf_processor_main(self, mm_items: MultiModalDataItems, hf_kwargs: Options) -> BatchFeature:
        planned, options = _split(hf_kwargs)
        if planned is None:
            return super()._apply_hf_processor_main(mm_items, options)
        clips = planned.plans.get("video")
        others = mm_items if clips is None else mm_items.select(mm_items.keys() - {"video"})
        processed = super()._apply_hf_processor_main(others, options)
        if clips:
            processed.update(self._clip_inputs(mm_items.get("video"), clips, options))
        for modality, plans in planned.plans.items():
            if plans:
                processed[FIELDS[modality]] = [plan.to_tensor() for plan in plans]
        return processed

    def _clip_inputs(self, clips: VideoProcessorItems, plans: Sequence[Plan], options: Options) -> dict[str, Any]:
        """What vLLM's class is given of clips, with the pixels that the embedded engine makes."""
        processor = copy(self.info.get_hf_processor(**options).image_processor)
        # Some models of vLLM's do these steps themselves, on the device.
        steps = self.info.ctx.get_merged_mm_kwargs(options)
        processor.do_rescale = steps.get("do_rescale", processor.do_rescale)
        processor.do_normalize = steps.get("do_normalize", processor.do_normalize)
        pixels = [
            self.architecture.clip_pixels([Image.fromarray(frame) for frame in _frames(clips.get(i))], processor)
            for i in range(len(plans))
        ]
        return self._packed_clips(pixels, plans)

    def _packed_clips(self, pixels: Sequence[Tensor], plans: Sequence[Plan]) -> dict[str, Any]:
        return {"pixel_values_videos": list(pixels)}

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Options
    ) -> Mapping[str, MultiModalFieldConfig]:
        planned, options = _split(hf_processor_mm_kwargs)
        fields = super()._get_mm_fields_config(hf_inputs, options)
        if planned is None:
            return fields
        own = {FIELDS[name]: MultiModalFieldConfig.batched(name, keep_on_cpu=True) for name in planned.plans}
        return {**fields, **own}

    def _get_prompt_updates(
        self, mm_items: MultiModalDataItems, hf_processor_mm_kwargs: Options, out_mm_kwargs: MultiModalKwargsItems
    ) -> Sequence[PromptUpdate]:
        planned, options = _split(hf_processor_mm_kwargs)
        updates = super()._get_prompt_updates(
            mm_items=mm_items, hf_processor_mm_kwargs=options, out_mm_kwargs=out_mm_kwargs
        )
        if planned is None:
            return updates
        return [
            *(self._replacement(modality, plans, options) for modality, plans in planned.plans.items()),
            *(update for update in updates if update.modality not in planned.plans),
        ]

    def _replacement(self, modality: str, plans: Sequence[Plan], options: Options) -> PromptReplacement:
        config, tokenizer = self.architecture.config, self.info.get_tokenizer()
        placeholder = config.image_token_id if modality == "image" else config.video_token_id
        before, after = self.architecture.frame(tokenizer)

        def replacement(item: int) -> list[int] | PromptUpdateDetails:
            plan = plans[item]
            slots: Sequence[int] = (placeholder,)
            if plan.frames:
                processor = self.info.get_hf_processor(**options).image_processor
                if told := self.architecture.clip_text(tokenizer, processor):
                    text = "".join(told.moments(plan.frames, plan.fps))
                    slots = tokenizer(text, add_special_tokens=False).input_ids
            each = plan.kept // slots.count(placeholder)
            own = [token for slot in slots for token in ([slot] * each if slot == placeholder else [slot])]
            framed = [*before, *own, *after]
            simple = len(framed) == plan.kept
            return framed if simple else PromptUpdateDetails.select_token_id(framed, placeholder)

        return PromptReplacement(modality=modality, target=[placeholder], replacement=replacement)


def clip(frames: Sequence[Image.Image], fps: float) -> tuple[np.ndarray, dict[str, Any]]:
    """A clip as vLLM takes it, marked as one whose pixels, times and tokens are those of the embedded engine."""
    return np.stack([np.asarray(frame) for frame in frames]), {FIELD: fps}


def _is_ours(clips: Any) -> bool:
    if not isinstance(clips, VideoProcessorItems) or not clips.metadata:
        return False
    return all(metadata is not None and FIELD in metadata for metadata in clips.metadata)


def _frames(item: Any) -> np.ndarray:
    """(frames, H, W, 3) of an item of vLLM's, which has the metadata beside them for some models."""
    frames: np.ndarray = item[0] if isinstance(item, tuple) else item
    return frames


def _split(options: Options) -> tuple[Planned | None, Options]:
    """A request's plans, and its options as the base class knows them."""
    planned = options.get(FIELD)
    if planned is None:
        return None, options
    assert isinstance(planned, Planned)
    return planned, {name: value for name, value in options.items() if name != FIELD}


@contextmanager
def _refusals() -> Iterator[None]:
    """Turns what the engines' rules refuse into vLLM's kind of refusal."""
    try:
        yield
    except InvalidRequest as error:
        raise refusal(str(error), (error.param or "").partition(".")[2]) from None
