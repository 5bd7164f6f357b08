"""Requests into vLLM's terms, off the event loop, and what became of their prompts into reports."""

import asyncio
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
from covervlm.server.core.generation import GenerationRequest, ImagePart, ImageReport, PromptReport, TokenLogprob
from covervlm.server.engines.detokenizer import PromptScores, vocabulary_of
from covervlm.server.engines.vllm.plugin.plan import FIELD
from covervlm.server.engines.vllm.plugin.processor import PruningProcessor
from covervlm.server.engines.vllm.workers import every_worker
from covervlm.server.models.processor import ChatProcessor
from covervlm.server.selection.selector import guiding_text, pruner_for

Result = TypeVar("Result")


@dataclass(frozen=True)
class Rendered:
    """A request as vLLM takes it. digests: its images' plans by name, empty where nothing is pruned."""

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

    async def render(self, request: GenerationRequest) -> Rendered:
        """Tokenise, resize and plan, off the event loop."""
        started = time.perf_counter()
        images = _still_images(request)
        option = _option(request, self._processor)
        context = self._llm.model_config.max_model_len
        ids = await self.tokenize(request)
        request.token_limit(len(ids), context)  # refused before images are read
        tokens: TokensPrompt = {"prompt_token_ids": list(ids)}
        if request.caller.has_key:
            # vLLM keeps prompts by their beginnings: how long an answer takes must not tell what others have asked.
            tokens["cache_salt"] = request.caller.owner
        if images:
            tokens["multi_modal_data"] = {"image": [part.image for part in images]}
            tokens["multi_modal_uuids"] = {"image": [part.digest for part in images]}
            tokens["mm_processor_kwargs"] = {FIELD: option}
        costs = [self._processor.cost(*part.image.size) for part in images]
        request.caller.hold(sum(cost.kept for cost in costs))
        with request.caller.holding(sum(cost.by_processor for cost in costs)):
            (engine_input,) = await self._llm.renderer.render_cmpl_async([tokens])
        reports, digests = [], []
        if images:
            placeholders, names = engine_input["mm_placeholders"]["image"], engine_input["mm_hashes"]["image"]
            for part, placeholder, name in zip(images, placeholders, names, strict=True):
                layout = self._processor.layout(*part.image.size, {})
                kept = placeholder.get_num_embeds()  # without what stands around the image
                pruned = kept < layout.total
                method = request.pruning.method if pruned else "none"
                reports.append(ImageReport(layout.total, kept, method, coverage=None if pruned else 1.0))
                digests.append(name)
        return Rendered(engine_input, tuple(reports), tuple(digests), {"preprocess": time.perf_counter() - started})

    async def tokenize(self, request: GenerationRequest) -> tuple[int, ...]:
        """The prompt's ids, with one placeholder per image."""
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
        for i, (report, part) in enumerate(zip(rendered.reports, _still_images(request), strict=True)):
            indices: Sequence[int] | None = range(report.total)
            if report.kept < report.total:
                found = next((worker[i] for worker in workers if worker[i] is not None), None)
                indices, coverage, milliseconds = (None, None, 0.0) if found is None else found
                report = replace(report, coverage=coverage, milliseconds=milliseconds)
            if request.pruning.return_indices and indices is not None:
                layout, box = self._processor.layout(*part.image.size, {}), self._processor.box(*part.image.size)
                report = replace(report, indices=tuple(indices), grid=layout.grid, box=box)
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


def _still_images(request: GenerationRequest) -> list[ImagePart]:
    images = [part for part in request.images if isinstance(part, ImagePart)]
    if len(images) < len(request.images):
        raise InvalidRequest("The vLLM engine reads images, not videos; send frames as images.", param="messages")
    return images


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
