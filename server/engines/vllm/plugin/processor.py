"""The front end's side of pruning: budgets and questions to plans, plans to placeholders and cache keys."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import transformers
from transformers import BatchFeature
from vllm.inputs import MultiModalHashes, MultiModalInput
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems
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
from covervlm.server.engines.vllm.plugin.plan import FIELD, Plan
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
    """One request's plans, which take the place of its `vision_prune` option; hashes: those of other modalities."""

    plans: tuple[Plan, ...]
    hashes: MultiModalHashes

    def only(self, wanted: Sequence[bool]) -> "Planned":
        return replace(self, plans=tuple(plan for plan, want in zip(self.plans, wanted, strict=True) if want))


class PruningProcessor(BaseMultiModalProcessor):
    """Mixed into a processor of vLLM's. A request that prunes nothing goes the base class's way untouched."""

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

    def cost(self, width: int, height: int) -> Cost:
        """What preprocessing an image of this size takes. Raises InvalidRequest."""
        return self.architecture.cost(width, height, self.info.get_hf_processor().image_processor)

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
        """The plans of a request's images; None where none of them loses a token."""
        policy, architecture = request.policy, self.architecture
        offered = self._default.methods
        if offered and policy.method not in (*offered, "none"):
            raise refusal(f"{policy.method[:40]} is not offered here; choose one of {', '.join(offered)}", "method")
        with _refusals():
            pruner = pruner_for(policy, architecture.pruner_params, has_cls_token=architecture.has_cls_token)
        images = inputs.mm_data_items.get("image")
        if not policy.prunes or not images:
            return None
        if not isinstance(images, ImageProcessorItems):
            if request.explicit:
                raise refusal("image embeddings cannot be pruned: send images")
            return None
        sizes = [images.get_image_size(i) for i in range(len(images))]
        shapes = [self._shape(size.width, size.height, inputs.hf_processor_mm_kwargs) for size in sizes]
        layouts = [architecture.layout(shape) for shape in shapes]
        with _refusals():
            budgets = [
                budget_of(policy, i, len(layouts), layout.prunable, len(layout.parts))
                for i, layout in enumerate(layouts)
            ]
        if all(budget >= layout.prunable for budget, layout in zip(budgets, layouts, strict=True)):
            return None
        question: tuple[int, ...] = ()
        if pruner.uses_text:
            text = request.question
            if text is None:
                text = text_of_turns(policy.guide, self._turns.texts(inputs.prompt))
            question = tuple(architecture.word_ids(self._chat, text, policy.recipe))
        hashes = super()._get_mm_hashes(inputs)
        plans = []
        for digest, shape, layout, budget in zip(hashes["image"], shapes, layouts, budgets, strict=True):
            plan = Plan(
                image=hashlib.sha256(digest.encode()).digest()[:16],  # a caller's own name may be any text
                shape=shape,
                method=policy.method,
                budget=budget,
                kept=pruned_layout(layout, policy.recipe, pruner).kept(budget),
                question=question,
                seed=request.seed,
                parameters=policy.parameters,
                recipe=policy.recipe,
            )
            plans.append(plan if budget < layout.prunable else replace(plan.whole(), kept=layout.total))
        return Planned(tuple(plans), {name: keys for name, keys in hashes.items() if name != "image"})

    # From plans to what vLLM sends to its workers and caches.

    def _get_mm_hashes(self, inputs: ProcessorInputs) -> MultiModalHashes:
        planned, _ = _split(inputs.hf_processor_mm_kwargs)
        if planned is None:
            return super()._get_mm_hashes(inputs)
        return {**planned.hashes, "image": [plan.digest for plan in planned.plans]}

    def _get_cache_missing_processor_kwargs(
        self, inputs: ProcessorInputs, mm_is_cached: Mapping[str, list[bool]]
    ) -> Options:
        planned, options = _split(inputs.hf_processor_mm_kwargs)
        if planned is None:
            return options
        return {**options, FIELD: planned.only([not cached for cached in mm_is_cached["image"]])}

    def _apply_hf_processor_main(self, mm_items: MultiModalDataItems, hf_kwargs: Options) -> BatchFeature:
        planned, options = _split(hf_kwargs)
        processed = super()._apply_hf_processor_main(mm_items, options)
        if planned is not None and planned.plans:
            processed[FIELD] = [plan.to_tensor() for plan in planned.plans]
        return processed

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Options
    ) -> Mapping[str, MultiModalFieldConfig]:
        planned, options = _split(hf_processor_mm_kwargs)
        fields = super()._get_mm_fields_config(hf_inputs, options)
        if planned is None:
            return fields
        return {**fields, FIELD: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: MultiModalDataItems, hf_processor_mm_kwargs: Options, out_mm_kwargs: MultiModalKwargsItems
    ) -> Sequence[PromptUpdate]:
        planned, options = _split(hf_processor_mm_kwargs)
        updates = super()._get_prompt_updates(
            mm_items=mm_items, hf_processor_mm_kwargs=options, out_mm_kwargs=out_mm_kwargs
        )
        if planned is None:
            return updates
        placeholder = self.architecture.config.image_token_id

        before, after = self.architecture.frame(self.info.get_tokenizer())

        def replacement(item: int) -> list[int] | PromptUpdateDetails:
            own = [placeholder] * planned.plans[item].kept
            framed = [*before, *own, *after]
            return PromptUpdateDetails.select_token_id(framed, placeholder) if framed != own else own

        pruned = PromptReplacement(modality="image", target=[placeholder], replacement=replacement)
        return [pruned, *(update for update in updates if update.modality != "image")]


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
