"""Requests into vLLM's terms, off the event loop, and what became of their prompts into reports."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from vllm.inputs import MultiModalInput, TokensPrompt
from vllm.logprobs import Logprob
from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import (
    GenerationRequest,
    ImagePart,
    ImageReport,
    PromptReport,
    TokenLogprob,
    VideoPart,
)
from covervlm.server.engines.detokenizer import PromptScores, vocabulary_of
from covervlm.server.engines.vllm.plugin.plan import FIELD
from covervlm.server.engines.vllm.plugin.processor import PruningProcessor, clip
from covervlm.server.engines.vllm.workers import every_worker
from covervlm.server.models.base import Layout
from covervlm.server.models.pictures import Cost
from covervlm.server.models.processor import ChatProcessor
from covervlm.server.selection.selector import guiding_text, pruner_for

Result = TypeVar("Result")
Part = ImagePart | VideoPart


@dataclass(frozen=True)
class Rendered:
    """A request as vLLM takes it. digests: the plans of its images and clips by name."""

    engine_input: MultiModalInput
    reports: tuple[ImageReport, ...]
    digests: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def prompt_tokens(self) -> int:
        return len(self.engine_input["prompt_token_ids"])


class Prompts:
    """Makes prompts for a running vLLM and tells what became of them."""

    def __init__(self, llm: AsyncLLM, processor: PruningProcessor, workers: int) -> None:
        """workers: threads that tokenise; vLLM has its own for images."""
        self._llm = llm
        self._processor = processor
        self.chat = ChatProcessor(processor.info.get_hf_processor(), processor.placeholders)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="covervlm-preprocess")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def render(self, request: GenerationRequest, answer: Sequence[int] = ()) -> Rendered:
        """Tokenise, resize and plan, off the event loop. answer: token ids that follow the prompt."""
        started = time.perf_counter()
        parts = request.images
        layouts = [self._layout(part) for part in parts]
        option = _option(request, self._processor)
        context = self._llm.model_config.max_model_len
        ids = (*await self.tokenize(request), *answer)
        request.token_limit(len(ids), context)  # refused before images are read
        tokens: TokensPrompt = {"prompt_token_ids": list(ids)}
        if request.caller.has_key:
            # vLLM keeps prompts by their beginnings: how long an answer takes must not tell what others have asked.
            tokens["cache_salt"] = request.caller.owner
        if parts:
            tokens["mm_processor_kwargs"] = {FIELD: option}
        costs = [self._processor.cost(*_size(part), _frames(part)) for part in parts]
        request.caller.hold(sum(cost.kept for cost in costs))
        with request.caller.holding(sum(map(_work, parts, costs))):
            if parts:
                tokens["multi_modal_data"] = await self.of_tokenizer(lambda _: _by_modality(parts, _as_vllm_takes_it))
                tokens["multi_modal_uuids"] = _by_modality(parts, lambda part: part.digest)
            (engine_input,) = await self._llm.renderer.render_cmpl_async([tokens])
        reports, digests = [], []
        if parts:
            placeholders, names = (
                {name: iter(own) for name, own in engine_input[key].items()} for key in ("mm_placeholders", "mm_hashes")
            )
            for part, layout in zip(parts, layouts, strict=True):
                kept = next(placeholders[_modality(part)]).get_num_embeds()  # without what stands around the image
                pruned = kept < layout.total
                method = request.pruning.method if pruned else "none"
                reports.append(ImageReport(layout.total, kept, method, coverage=None if pruned else 1.0))
                digests.append(next(names[_modality(part)]))
        return Rendered(engine_input, tuple(reports), tuple(digests), {"preprocess": time.perf_counter() - started})

    def _layout(self, part: Part) -> Layout:
        if isinstance(part, VideoPart):
            return self._processor.clip_layout(*_size(part), len(part.frames))
        return self._processor.layout(*_size(part), {})

    def check(self, request: GenerationRequest) -> None:
        """Raises InvalidRequest for pruning that cannot be done, whether or not there is something to prune."""
        _option(request, self._processor)

    async def tokenize(self, request: GenerationRequest) -> tuple[int, ...]:
        """The prompt's ids, with one placeholder per image or clip."""
        context = self._llm.model_config.max_model_len
        return await self.of_tokenizer(
            lambda chat: chat.tokenize(request.prompt, context, request.template, request.tools)
        )

    async def of_tokenizer(self, ask: Callable[[ChatProcessor], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, ask, self.chat)

    async def report(
        self, request: GenerationRequest, rendered: Rendered, output: RequestOutput, *, asked_for: bool = False
    ) -> PromptReport:
        """What became of the prompt. Indices and coverage are asked of the workers where the request wants them."""
        reports: Sequence[ImageReport] = rendered.reports
        if reports and (asked_for or request.pruning.return_indices):
            reports = await self._with_indices(request, rendered)
        seconds = dict(rendered.seconds)
        if (metrics := output.metrics) is not None and metrics.first_token_ts:
            seconds["queue"] = max(0.0, metrics.scheduled_ts - metrics.queued_ts)
            seconds["prefill"] = max(0.0, metrics.first_token_ts - metrics.scheduled_ts)
        ids = rendered.engine_input["prompt_token_ids"]
        logprobs: Sequence[TokenLogprob] = ()
        scores, top = output.prompt_logprobs, request.sampling.prompt_logprobs
        if scores is not None and top is not None:
            logprobs = await self.of_tokenizer(lambda chat: _entries(chat, ids, scores, top))
        cached = output.num_cached_tokens or 0
        return PromptReport(len(ids), tuple(reports), seconds, cached_tokens=cached, token_ids=ids, logprobs=logprobs)

    async def _with_indices(self, request: GenerationRequest, rendered: Rendered) -> list[ImageReport]:
        workers = await every_worker(self._llm, "covervlm_chosen", list(rendered.digests))
        reports = []
        for i, (report, part) in enumerate(zip(rendered.reports, request.images, strict=True)):
            indices: Sequence[int] | None = range(report.total)
            if report.kept < report.total:
                found = next((worker[i] for worker in workers if worker[i] is not None), None)
                indices, coverage, milliseconds = (None, None, 0.0) if found is None else found
                report = replace(report, coverage=coverage, milliseconds=milliseconds)
            if request.pruning.return_indices and indices is not None:
                box = self._processor.box(*_size(part)) if isinstance(part, ImagePart) else None
                report = replace(report, indices=tuple(indices), grid=self._layout(part).grid, box=box)
            reports.append(report)
        return reports


def _entries(
    chat: ChatProcessor, ids: Sequence[int], positions: Sequence[dict[int, Logprob]], limit: int
) -> tuple[TokenLogprob, ...]:
    """vLLM's entries of each position by token id, the prompt's own first and the likeliest after it by their ranks."""
    own = [position[token] for token, position in zip(ids[1:], positions[1:], strict=True)]
    ranked = [sorted(position.items(), key=lambda item: item[1].rank) for position in positions[1:]]
    top = [[(token, entry.logprob) for token, entry in position if entry.rank <= limit] for position in ranked]
    scores = PromptScores(
        [entry.logprob for entry in own],
        [entry.rank for entry in own],
        [[token for token, _ in best] for best in top],
        [[logprob for _, logprob in best] for best in top],
    )
    return vocabulary_of(chat.tokenizer).prompt_entries(ids, scores)


def _modality(part: Part) -> str:
    """vLLM's name."""
    return "image" if isinstance(part, ImagePart) else "video"


def _by_modality(parts: Sequence[Part], value: Callable[[Part], Any]) -> dict[str, list[Any]]:
    """Values of images and of clips, each in reading order."""
    names = dict.fromkeys(map(_modality, parts))
    return {name: [value(part) for part in parts if _modality(part) == name] for name in names}


def _as_vllm_takes_it(part: Part) -> Any:
    return part.image if isinstance(part, ImagePart) else clip(part.frames, part.fps)


def _size(part: Part) -> tuple[int, int]:
    return (part.image if isinstance(part, ImagePart) else part.frames[0]).size


def _frames(part: Part) -> int | None:
    return None if isinstance(part, ImagePart) else len(part.frames)


def _work(part: Part, cost: Cost) -> int:
    """Bytes: clips' pixels are made as the embedded engine makes them, out of a copy of the frames."""
    if isinstance(part, VideoPart):
        return cost.work + 3 * len(part.frames) * math.prod(_size(part))
    return cost.by_processor


def _option(request: GenerationRequest, processor: PruningProcessor) -> dict[str, Any]:
    """The request's policy as the plugin takes it; InvalidRequest for what it cannot do."""
    policy, architecture = request.pruning, processor.architecture
    pruner_for(policy, architecture.pruner_params, has_cls_token=architecture.has_cls_token)
    if policy.coverage is not None:
        raise InvalidRequest(
            "The vLLM engine must know the number of vision tokens before it looks at the image, so it takes no "
            "coverage budgets; use keep_tokens or keep_ratio.",
            param="vision_pruning.coverage",
        )
    if not policy.prunes:
        return {"method": "none"}
    counts = list(policy.keep_tokens) if isinstance(policy.keep_tokens, tuple) else policy.keep_tokens
    return {
        "method": policy.method,
        "keep_tokens": counts,
        "keep_tokens_per_crop": policy.keep_tokens_per_crop,
        "keep_ratio": policy.keep_ratio,
        "parameters": dict(policy.parameters),
        "recipe": policy.recipe,
        "question": guiding_text(request),
        "seed": request.selection_seed,
    }
