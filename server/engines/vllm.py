"""The engine of production: vLLM's AsyncLLM with our pruning inside its model path."""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from vllm.exceptions import VLLMClientError
from vllm.model_executor.model_loader.utils import get_model_cls
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from covervlm.server.engines.base import (
    EngineError,
    EngineInfo,
    EngineOverloaded,
    EngineStats,
    EngineUnavailable,
    GenerationChunk,
    GenerationRequest,
    InvalidRequest,
    PromptReport,
)
from covervlm.server.engines.selection import methods_for
from covervlm.server.engines.vllm_figures import Figures, vllm_metrics
from covervlm.server.engines.vllm_options import VllmEngineConfig, engine_args
from covervlm.server.engines.vllm_outputs import chunks, sampling_params
from covervlm.server.engines.vllm_prompts import Prompts, Rendered
from covervlm.server.engines.vllm_workers import every_worker
from covervlm.server.fairness import has_room
from covervlm.server.vllm_plugin.model import PruningModel
from covervlm.server.vllm_plugin.processor import PruningProcessor

__all__ = ["VllmEngine", "VllmEngineConfig"]


class VllmEngine(Collector):
    """Engine over vLLM. Coverage budgets and videos are refused; vLLM's own metrics are what it collects."""

    def __init__(self, config: VllmEngineConfig) -> None:
        """Raises SettingsError for options that vLLM does not take."""
        self._config = config
        self._arguments = engine_args(config)
        self._llm: AsyncLLM | None = None
        self._prompts: Prompts | None = None
        self._info: EngineInfo | None = None
        self._figures = Figures()
        self._numbers = itertools.count()
        self._unfinished: Counter[str | None] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False

    # Life.

    async def start(self) -> None:
        """Load the model in vLLM's processes. Raises ValueError where one of them has another model class than ours."""
        config = self._arguments.create_engine_config()
        self._check_prunes(issubclass(get_model_cls(config.model_config), PruningModel))
        llm = AsyncLLM.from_vllm_config(config, stat_loggers=[self._figures.logger])
        try:
            processor = llm.renderer.get_mm_processor()
            self._check_prunes(isinstance(processor, PruningProcessor))
            self._check_prunes(all(await every_worker(llm, "covervlm_prunes")))
        except BaseException:
            llm.shutdown()
            raise
        self._info = _info(llm, processor)
        self._prompts = Prompts(llm, processor, self._config.preprocess_workers)
        self._llm = llm

    def _check_prunes(self, prunes: bool) -> None:
        if not prunes:
            raise ValueError(
                f"vLLM serves {self._config.model_path} by a model class that does not prune: the architecture is not "
                "supported, or the plugin 'covervlm' was not loaded (see VLLM_PLUGINS)."
            )

    async def stop(self) -> None:
        """Refuse new requests, let running ones finish, end vLLM's processes."""
        self._stopping = True
        if self._llm is not None and self._prompts is not None:
            await self._idle.wait()
            self._figures.close()
            self._prompts.close()
            self._llm.shutdown()
            self._llm = None

    def _loaded(self) -> tuple[AsyncLLM, Prompts]:
        if self._llm is None or self._prompts is None:
            raise EngineUnavailable("The model is not loaded yet; wait for /ready.")
        return self._llm, self._prompts

    # What it tells about itself.

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineUnavailable("The model is not loaded yet; wait for /ready.")
        return self._info

    @property
    def ready(self) -> bool:
        return self._llm is not None and not self._stopping and not self._llm.errored

    def stats(self) -> EngineStats:
        return self._figures.stats(self._llm)

    def collect(self) -> Iterable[Metric]:
        return vllm_metrics()

    # Requests.

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationChunk, None]:
        """Chunks of all choices as vLLM streams them; closing the iterator aborts the request in vLLM."""
        async with self._admitted(request.owner):
            llm, prompts = self._loaded()
            rendered = await prompts.render(request)
            tokenizer = llm.renderer.get_tokenizer()
            limit = request.token_limit(rendered.prompt_tokens, llm.model_config.max_model_len)
            async with contextlib.aclosing(self._outputs(request, rendered, limit)) as outputs:
                first = True
                async for output in outputs:
                    if first:
                        first = False
                        yield GenerationChunk(prompt=await prompts.report(request, rendered, output))
                    for chunk in chunks(output, request.sampling, tokenizer):
                        yield chunk

    async def prune(self, request: GenerationRequest) -> PromptReport:
        """What the request's policy would keep of each image; costs a prefill, since vLLM has no earlier exit."""
        async with self._admitted(request.owner):
            _, prompts = self._loaded()
            rendered = await prompts.render(request)
            async with contextlib.aclosing(self._outputs(request, rendered, 1)) as outputs:
                async for output in outputs:
                    return await prompts.report(request, rendered, output, asked_for=True)
        raise EngineError("The engine ended before it had looked at the images.")

    async def _outputs(self, request: GenerationRequest, rendered: Rendered, limit: int) -> AsyncGenerator[Any, None]:
        llm, _ = self._loaded()
        name = f"{request.request_id}-{next(self._numbers)}"
        stream = llm.generate(rendered.engine_input, sampling_params(request.sampling, limit), name)
        async with contextlib.aclosing(stream):
            async for output in stream:
                yield output

    @contextlib.asynccontextmanager
    async def _admitted(self, owner: str | None) -> AsyncGenerator[None, None]:
        """Counts a request from its arrival to its end; raises where there is no room for it, or no engine."""
        if not self.ready:
            raise EngineUnavailable("The model is not being served right now; try another replica or wait for /ready.")
        self._check_room(owner)
        self._unfinished[owner] += 1
        self._idle.clear()
        try:
            yield
        except EngineDeadError:
            raise EngineUnavailable("The engine has failed; the server needs a restart.") from None
        except VLLMClientError as error:
            raise InvalidRequest(str(error), param="messages") from None
        finally:
            self._unfinished[owner] -= 1
            if not self._unfinished[owner]:
                del self._unfinished[owner]
            if not self._unfinished:
                self._idle.set()

    def _check_room(self, owner: str | None) -> None:
        """vLLM's queue is served in the order of arrival, so that what an owner may hold of it is limited here."""
        limit = self._config.max_running + self._config.max_waiting
        total, mine = self._unfinished.total(), self._unfinished[owner]
        if total >= limit:
            raise EngineOverloaded(
                f"{self._config.max_waiting} requests are already waiting; try again shortly.", retry_after=1.0
            )
        if owner is not None and not has_room(mine=mine, total=total, limit=limit):
            raise EngineOverloaded(
                f"{mine} requests of this key are not finished, and the rest of the queue is for others; "
                "try again shortly.",
                retry_after=1.0,
            )


def _info(llm: AsyncLLM, processor: PruningProcessor) -> EngineInfo:
    model, fixed = llm.model_config, processor.fixed_layout
    return EngineInfo(
        engine="vllm",
        architecture=model.architecture,
        context_length=model.max_model_len,
        vision_tokens=None if fixed is None else fixed.total,
        dtype=str(model.dtype).removeprefix("torch."),
        device=current_platform.device_type,
        methods=methods_for(processor.architecture.has_cls_token),
    )
