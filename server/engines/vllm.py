"""The engine of production: vLLM's AsyncLLM with our pruning inside its model path."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from vllm.exceptions import VLLMClientError
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.prometheus import get_prometheus_registry

from covervlm.server.engines.base import (
    EngineError,
    EngineInfo,
    EngineOverloaded,
    EngineStats,
    EngineUnavailable,
    GenerationChunk,
    GenerationRequest,
    ImagePart,
    ImageReport,
    InvalidRequest,
    PromptReport,
)
from covervlm.server.engines.selection import guiding_text, methods_for, pruner_for
from covervlm.server.engines.vllm_options import VllmEngineConfig, engine_args
from covervlm.server.engines.vllm_outputs import chunks, sampling_params
from covervlm.server.models.processor import ChatProcessor
from covervlm.server.vllm_plugin.plan import FIELD
from covervlm.server.vllm_plugin.processor import PruningProcessor

__all__ = ["VllmEngine", "VllmEngineConfig"]


@dataclass(frozen=True)
class Rendered:
    """A request as vLLM takes it. digests: its images' plans by name, empty where nothing is pruned."""

    engine_input: Any
    reports: tuple[ImageReport, ...]
    digests: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def prompt_tokens(self) -> int:
        return len(self.engine_input["prompt_token_ids"])


class VllmEngine(Collector):
    """Engine over vLLM. Coverage budgets and videos are refused; vLLM's own metrics are what it collects."""

    def __init__(self, config: VllmEngineConfig) -> None:
        """Raises SettingsError for options that vLLM does not take."""
        self._config = config
        self._arguments = engine_args(config)
        self._pool = ThreadPoolExecutor(config.preprocess_workers, thread_name_prefix="covervlm-preprocess")
        self._llm: AsyncLLM | None = None
        self._processor: PruningProcessor | None = None
        self._chat: ChatProcessor | None = None
        self._numbers = itertools.count()
        self._unfinished = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._scheduler: dict[int, Any] = {}
        self._cache = (0, 0, 0)
        self._asking: asyncio.Task[None] | None = None

    # Life.

    async def start(self) -> None:
        """Load the model in vLLM's processes. Raises ValueError where they run another model class than ours."""
        llm = AsyncLLM.from_engine_args(self._arguments, stat_loggers=[self._stat_logger])
        try:
            processor = llm.renderer.get_mm_processor() if llm.model_config.is_multimodal_model else None
            if not isinstance(processor, PruningProcessor) or not all(await llm.collective_rpc("covervlm_prunes")):
                raise ValueError(
                    f"vLLM serves {self._config.model_path} by a model class that does not prune: the architecture is "
                    "not supported, or the plugin 'covervlm' was not loaded (see VLLM_PLUGINS)."
                )
        except BaseException:
            llm.shutdown()
            raise
        self._processor = processor
        self._chat = ChatProcessor(processor.info.get_hf_processor(), processor.placeholders)
        self._llm = llm

    async def stop(self) -> None:
        """Refuse new requests, let running ones finish, end vLLM's processes."""
        self._stopping = True
        if self._llm is not None:
            await self._idle.wait()
            if self._asking is not None:
                self._asking.cancel()
            self._llm.shutdown()
            self._llm = None
        self._pool.shutdown(wait=False, cancel_futures=True)

    # What it tells about itself.

    @property
    def info(self) -> EngineInfo:
        llm, processor = self._loaded()
        model = llm.model_config
        fixed = processor.fixed_layout
        return EngineInfo(
            engine="vllm",
            architecture=model.architecture,
            context_length=model.max_model_len,
            vision_tokens=None if fixed is None else fixed.total,
            dtype=str(model.dtype).removeprefix("torch."),
            device=current_platform.device_type,
            methods=methods_for(processor.architecture.has_cls_token),
        )

    @property
    def ready(self) -> bool:
        return self._llm is not None and not self._stopping and not self._llm.errored

    def stats(self) -> EngineStats:
        """vLLM's scheduler as of its last step; the cache's figures as of the call before."""
        self._ask_for_cache()
        stats = list(self._scheduler.values())
        held, hits, misses = self._cache
        return EngineStats(
            running=sum(entry.num_running_reqs for entry in stats),
            waiting=sum(entry.num_waiting_reqs for entry in stats),
            cache_bytes=held,
            cache_hits=hits,
            cache_misses=misses,
        )

    def collect(self) -> Iterable[Metric]:
        """vLLM's own metrics, as its server would show them."""
        return (metric for metric in get_prometheus_registry().collect() if metric.name.startswith("vllm:"))

    # Requests.

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationChunk, None]:
        """Chunks of all choices as vLLM streams them; closing the iterator aborts the request in vLLM."""
        async with self._admitted():
            rendered = await self._render(request)
            limit = self._token_limit(request, rendered.prompt_tokens)
            async with contextlib.aclosing(self._outputs(request, rendered, limit)) as outputs:
                first = True
                async for output in outputs:
                    if first:
                        first = False
                        yield GenerationChunk(prompt=await self._report(request, rendered, output))
                    for chunk in chunks(output, request.sampling, self._tokenizer):
                        yield chunk

    async def prune(self, request: GenerationRequest) -> PromptReport:
        """What the request's policy would keep of each image; costs a prefill, since vLLM has no earlier exit."""
        async with self._admitted():
            rendered = await self._render(request)
            async with contextlib.aclosing(self._outputs(request, rendered, 1)) as outputs:
                async for output in outputs:
                    return await self._report(request, rendered, output, asked_for=True)
        raise EngineError("The engine ended before it had looked at the images.")

    @contextlib.asynccontextmanager
    async def _admitted(self) -> AsyncGenerator[None, None]:
        """Counts a request from its arrival to its end; raises where there is no room, or no engine."""
        if not self.ready:
            raise EngineUnavailable("The model is not being served right now; try another replica or wait for /ready.")
        if self._unfinished >= self._config.max_running + self._config.max_waiting:
            raise EngineOverloaded(
                f"{self._config.max_waiting} requests are already waiting; try again shortly.", retry_after=1.0
            )
        self._unfinished += 1
        self._idle.clear()
        try:
            yield
        except EngineDeadError:
            raise EngineUnavailable("The engine has failed; the server needs a restart.") from None
        except VLLMClientError as error:
            raise InvalidRequest(str(error), param="messages") from None
        finally:
            self._unfinished -= 1
            if not self._unfinished:
                self._idle.set()

    async def _render(self, request: GenerationRequest) -> Rendered:
        """Tokenise, resize and plan, off the event loop."""
        llm, processor = self._loaded()
        assert self._chat is not None
        started = time.perf_counter()
        images = _still_images(request)
        option = _option(request, processor)
        prompt = await asyncio.get_running_loop().run_in_executor(self._pool, self._chat.tokenize, request.messages)
        self._token_limit(request, len(prompt.ids))
        tokens: dict[str, Any] = {"prompt_token_ids": list(prompt.ids)}
        if images:
            tokens["multi_modal_data"] = {"image": [part.image for part in images]}
            tokens["multi_modal_uuids"] = {"image": [part.digest for part in images]}
            tokens["mm_processor_kwargs"] = {FIELD: option}
        (engine_input,) = await llm.renderer.render_cmpl_async([tokens])
        reports, digests = [], []
        if images:
            placeholders, names = engine_input["mm_placeholders"]["image"], engine_input["mm_hashes"]["image"]
            for part, placeholder, name in zip(images, placeholders, names, strict=True):
                layout = processor.layout(*part.image.size, {})
                pruned = placeholder.length < layout.total
                method = request.pruning.method if pruned else "none"
                reports.append(ImageReport(layout.total, placeholder.length, method, coverage=None if pruned else 1.0))
                digests.append(name)
        return Rendered(engine_input, tuple(reports), tuple(digests), {"preprocess": time.perf_counter() - started})

    async def _outputs(self, request: GenerationRequest, rendered: Rendered, limit: int) -> AsyncGenerator[Any, None]:
        llm, _ = self._loaded()
        name = f"{request.request_id}-{next(self._numbers)}"
        stream = llm.generate(rendered.engine_input, sampling_params(request.sampling, limit), name)
        async with contextlib.aclosing(stream):
            async for output in stream:
                yield output

    async def _report(
        self, request: GenerationRequest, rendered: Rendered, output: Any, *, asked_for: bool = False
    ) -> PromptReport:
        """What became of the prompt. Indices and coverage are asked of the workers where the request wants them."""
        reports: Sequence[ImageReport] = rendered.reports
        if reports and (asked_for or request.pruning.return_indices):
            reports = await self._with_indices(request, rendered)
        seconds = dict(rendered.seconds)
        if (metrics := output.metrics) is not None and metrics.first_token_ts:
            seconds["queue"] = max(0.0, metrics.scheduled_ts - metrics.queued_ts)
            seconds["prefill"] = max(0.0, metrics.first_token_ts - metrics.scheduled_ts)
        return PromptReport(rendered.prompt_tokens, tuple(reports), seconds)

    async def _with_indices(self, request: GenerationRequest, rendered: Rendered) -> list[ImageReport]:
        llm, processor = self._loaded()
        workers = await llm.collective_rpc("covervlm_chosen", args=(list(rendered.digests),))
        reports = []
        for i, (report, part) in enumerate(zip(rendered.reports, _still_images(request), strict=True)):
            indices: Sequence[int] | None = range(report.total)
            coverage, milliseconds = report.coverage, 0.0
            if report.kept < report.total:
                found = next((worker[i] for worker in workers if worker[i] is not None), None)
                indices, coverage, milliseconds = (None, None, 0.0) if found is None else found
            wanted = request.pruning.return_indices and indices is not None
            reports.append(
                ImageReport(
                    total=report.total,
                    kept=report.kept,
                    method=report.method,
                    coverage=coverage,
                    milliseconds=milliseconds,
                    indices=tuple(indices) if wanted and indices is not None else None,
                    grid=processor.layout(*part.image.size, {}).grid if wanted else None,
                    box=processor.box(*part.image.size) if wanted else None,
                )
            )
        return reports

    def _token_limit(self, request: GenerationRequest, prompt_tokens: int) -> int:
        llm, _ = self._loaded()
        asked, context = request.sampling.max_tokens, llm.model_config.max_model_len
        if prompt_tokens + (asked or 1) > context:
            wanted = f" and {asked} for the answer" if asked else ""
            raise InvalidRequest(
                f"This model's context is {context} tokens, but the prompt needs {prompt_tokens}{wanted}. "
                "Shorten the messages, lower max_tokens, or keep fewer vision tokens (vision_pruning.keep_tokens).",
                param="messages",
                code="context_length_exceeded",
            )
        return asked or context - prompt_tokens

    # vLLM's side.

    def _loaded(self) -> tuple[AsyncLLM, PruningProcessor]:
        if self._llm is None or self._processor is None:
            raise EngineUnavailable("The model is not loaded yet; wait for /ready.")
        return self._llm, self._processor

    @property
    def _tokenizer(self) -> Any:
        return self._loaded()[0].renderer.get_tokenizer()

    def _stat_logger(self, _: Any, engine_index: int = 0) -> StatLoggerBase:
        return _SchedulerWatch(self._scheduler, engine_index)

    def _ask_for_cache(self) -> None:
        if self._llm is not None and (self._asking is None or self._asking.done()):
            self._asking = asyncio.ensure_future(self._read_cache(self._llm))

    async def _read_cache(self, llm: AsyncLLM) -> None:
        with contextlib.suppress(EngineDeadError):
            figures = await llm.collective_rpc("covervlm_cache")
            self._cache = tuple(sum(column) for column in zip(*figures, strict=True))


class _SchedulerWatch(StatLoggerBase):
    """Keeps the scheduler's last figures of one engine."""

    def __init__(self, latest: dict[int, Any], engine_index: int) -> None:
        self._latest, self._index = latest, engine_index

    def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
        if scheduler_stats is not None:
            self._latest[self._index] = scheduler_stats

    def log_engine_initialized(self) -> None:
        pass


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
    budget = {"keep_ratio": policy.keep_ratio} if counts is None else {"keep_tokens": counts}
    seed = request.sampling.seed or 0
    return {"method": policy.method, **budget, "question": guiding_text(request), "seed": seed}
