"""The engine of production: vLLM's AsyncLLM with our pruning inside its model path."""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from dataclasses import fields, replace

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from vllm.exceptions import VLLMClientError
from vllm.model_executor.model_loader.utils import get_model_cls
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from covervlm.server.core.agreement import AnswerScores
from covervlm.server.core.caller import Caller
from covervlm.server.core.engine import EngineInfo, EngineStats
from covervlm.server.core.errors import EngineError, EngineOverloaded, EngineUnavailable, InvalidRequest
from covervlm.server.core.fairness import has_room
from covervlm.server.core.generation import (
    GenerationChunk,
    GenerationRequest,
    PromptReport,
    PromptTokens,
    SamplingParams,
)
from covervlm.server.engines.recommended import recommended
from covervlm.server.engines.vllm.figures import Figures, vllm_metrics
from covervlm.server.engines.vllm.options import VllmEngineConfig, engine_args
from covervlm.server.engines.vllm.outputs import Chunks, answer_scores, sampling_params
from covervlm.server.engines.vllm.plugin.model import PruningModel
from covervlm.server.engines.vllm.plugin.processor import PruningProcessor
from covervlm.server.engines.vllm.prompts import Prompts, Rendered
from covervlm.server.engines.vllm.workers import every_worker
from covervlm.server.selection.selector import methods_for

__all__ = ["VllmEngine", "VllmEngineConfig"]


_SAMPLING = frozenset(field.name for field in fields(SamplingParams))
_SCORING = SamplingParams(prompt_logprobs=1)


class VllmEngine(Collector):
    """Engine over vLLM. Coverage budgets are refused; vLLM's own metrics are what it collects."""

    def __init__(self, config: VllmEngineConfig) -> None:
        """Raises SettingsError for options that vLLM does not take."""
        self._config = config
        self._arguments = engine_args(config)
        self._llm: AsyncLLM | None = None
        self._prompts: Prompts | None = None
        self._info: EngineInfo | None = None
        self._figures: Figures | None = None
        self._numbers = itertools.count()
        self._unfinished: Counter[str] = Counter()
        self._expected = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._arrival = asyncio.Event()
        self._stopping = False

    # Start and end.

    async def start(self) -> None:
        """Load the model in vLLM's processes. Raises ValueError where one of them runs a class that does not prune."""
        config = self._arguments.create_engine_config()
        self._check_prunes(issubclass(get_model_cls(config.model_config), PruningModel))
        figures = Figures(asyncio.get_running_loop())
        llm = AsyncLLM.from_vllm_config(config, stat_loggers=[figures.logger])
        try:
            processor = llm.renderer.get_mm_processor()
            self._check_prunes(isinstance(processor, PruningProcessor))
            self._check_prunes(all(await every_worker(llm, "covervlm_prunes")))
        except BaseException:
            llm.shutdown()
            raise
        self._prompts = prompts = Prompts(llm, processor, self._config.preprocess_workers)
        self._info = _info(llm, processor, prompts.chat.template.tool_format, self._config.methods)
        self._llm, self._figures = llm, figures

    def _check_prunes(self, prunes: bool) -> None:
        if not prunes:
            raise ValueError(
                f"vLLM serves {self._config.model_path} by a model class that does not prune: the architecture is not "
                "supported, or the plugin 'covervlm' was not loaded (see VLLM_PLUGINS)."
            )

    async def stop(self) -> None:
        """Refuse new requests, let running ones finish, end vLLM's processes."""
        self._stopping = True
        if self._llm is not None and self._prompts is not None and self._figures is not None:
            await self._idle.wait()
            self._figures.close()
            self._prompts.close()
            self._llm.shutdown()
            self._llm = None

    def _loaded(self) -> tuple[AsyncLLM, Prompts]:
        if self._llm is None or self._prompts is None:
            raise EngineUnavailable("The model is not loaded yet; wait for /ready.")
        return self._llm, self._prompts

    # Facts and figures.

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineUnavailable("The model is not loaded yet; wait for /ready.")
        return self._info

    @property
    def ready(self) -> bool:
        return self._llm is not None and not self._stopping and not self._llm.errored

    def stats(self) -> EngineStats:
        llm, figures = self._llm, self._figures
        return EngineStats() if llm is None or figures is None else figures.stats(llm)

    def collect(self) -> Iterable[Metric]:
        return vllm_metrics()

    # Requests.

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationChunk, None]:
        """Chunks of all choices as vLLM streams them; closing the iterator aborts the request in vLLM."""
        async with self._admitted(request.caller):
            llm, prompts = self._loaded()
            chunks = Chunks(request.sampling, llm.renderer.get_tokenizer())
            async with contextlib.aclosing(self._outputs(request)) as outputs:
                first = True
                async for rendered, output in outputs:
                    if first:
                        first = False
                        yield GenerationChunk(prompt=await prompts.report(request, rendered, output))
                    for chunk in chunks.of(output):
                        yield chunk

    async def prune(self, request: GenerationRequest) -> PromptReport:
        """What the request's policy would keep of each image; costs a prefill, since vLLM has no earlier exit."""
        async with self._admitted(request.caller):
            _, prompts = self._loaded()
            async with contextlib.aclosing(self._outputs(request, limit=1)) as outputs:
                async for rendered, output in outputs:
                    return await prompts.report(request, rendered, output, asked_for=True)
        raise EngineError("The engine ended before it had encoded the images; send the request again.")

    async def score(self, request: GenerationRequest, answer: Sequence[int]) -> AnswerScores:
        """vLLM cannot pause a request: what a newcomer interrupts is aborted, and begins anew when all is quiet."""
        while True:
            await self._idle.wait()
            if not self.ready:
                raise EngineUnavailable("The model is not being served right now.")
            self._arrival.clear()
            scoring = asyncio.ensure_future(self._scores(request, answer))
            arrival = asyncio.ensure_future(self._arrival.wait())
            try:
                await asyncio.wait((scoring, arrival), return_when=asyncio.FIRST_COMPLETED)
                if scoring.done():
                    return scoring.result()
            finally:
                scoring.cancel()
                arrival.cancel()
                await asyncio.gather(scoring, arrival, return_exceptions=True)

    @contextlib.contextmanager
    def expected(self) -> Iterator[None]:
        self._expected += 1
        self._idle.clear()
        self._arrival.set()
        try:
            yield
        finally:
            self._expected -= 1
            self._check_idle()

    def _check_idle(self) -> None:
        if not self._unfinished and not self._expected:
            self._idle.set()

    async def _scores(self, request: GenerationRequest, answer: Sequence[int]) -> AnswerScores:
        try:
            with request.caller.part() as caller:
                asked = replace(request, sampling=_SCORING, caller=caller)
                async with contextlib.aclosing(self._outputs(asked, answer, limit=1)) as outputs:
                    async for _, output in outputs:
                        if output.prompt_logprobs is not None:
                            return answer_scores(answer, output.prompt_logprobs[-len(answer) :])
        except EngineDeadError:
            raise EngineUnavailable("The engine has failed; the server needs a restart.") from None
        raise EngineError("The engine ended before it had read the answer.")

    async def tokenize(self, request: GenerationRequest) -> PromptTokens:
        """Images are resized, since a prompt's length depends on their sizes, but not looked at."""
        async with self._admitted(request.caller):
            _, prompts = self._loaded()
            prompts.check(request)
            if request.images:
                ids = tuple((await prompts.render(request)).engine_input["prompt_token_ids"])
            else:
                ids = await prompts.tokenize(request)
            return PromptTokens(ids, await prompts.of_tokenizer(lambda chat: chat.names(ids)))

    async def detokenize(self, ids: Sequence[int], caller: Caller) -> str:
        async with self._admitted(caller):
            llm, prompts = self._loaded()
            return await prompts.of_tokenizer(lambda chat: chat.detokenize(ids, llm.model_config.max_model_len))

    async def _outputs(
        self, request: GenerationRequest, answer: Sequence[int] = (), *, limit: int | None = None
    ) -> AsyncGenerator[tuple[Rendered, RequestOutput], None]:
        """The prompt and what vLLM says to it. answer, limit: token ids after the prompt; most tokens of what follows.

        What was rendered and then not sent, as by /tokenize or for a client that went away, leaves vLLM believing that
        its engine has the images. It learns better from the first request that relies on it, which is sent again.
        """
        llm, prompts = self._loaded()
        for last in (False, True):
            rendered = await prompts.render(request, answer)
            most = limit or request.token_limit(rendered.prompt_tokens, llm.model_config.max_model_len)
            async with contextlib.aclosing(self._sent(request, rendered, most)) as outputs:
                async for output in outputs:
                    if request.images and not last and _lacks_images(output):
                        break
                    last = True
                    yield rendered, output
                else:
                    return

    async def _sent(
        self, request: GenerationRequest, rendered: Rendered, limit: int
    ) -> AsyncGenerator[RequestOutput, None]:
        llm, _ = self._loaded()
        name = f"{request.request_id}-{next(self._numbers)}"
        added = llm.renderer.get_tokenizer().get_added_vocab() if request.sampling.grammar else ()
        stream = llm.generate(rendered.engine_input, sampling_params(request.sampling, limit, added), name)
        try:
            async with contextlib.aclosing(stream):
                async for output in stream:
                    yield output
        except VLLMClientError as error:
            # vLLM does not say which field it means where it refuses a grammar.
            grammar, named = request.sampling.grammar, getattr(error, "parameter", None)
            if grammar is None or named in _SAMPLING:
                raise InvalidRequest(str(error), param=named if named in _SAMPLING else request.prompt_param) from None
            raise grammar.refusal(str(error).rstrip(".")) from None

    @contextlib.asynccontextmanager
    async def _admitted(self, caller: Caller) -> AsyncGenerator[None, None]:
        """Counts a request from its arrival to its end; raises where there is no room for it, or no engine."""
        if not self.ready:
            raise EngineUnavailable("The model is not being served right now; try another replica or wait for /ready.")
        owner = caller.owner
        self._check_room(caller)
        self._unfinished[owner] += 1
        self._idle.clear()
        self._arrival.set()
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
            self._check_idle()

    def _check_room(self, caller: Caller) -> None:
        """vLLM serves its queue in the order of arrival, so one owner's share of the queue is limited here."""
        limit = self._config.max_running + self._config.max_waiting
        total, mine = self._unfinished.total(), self._unfinished[caller.owner]
        if total >= limit:
            raise EngineOverloaded(
                f"{self._config.max_waiting} requests are already waiting; try again shortly.", retry_after=1.0
            )
        if caller.has_key and not has_room(mine=mine, total=total, limit=limit):
            raise EngineOverloaded(
                f"{mine} requests of this key are not finished, and the rest of the queue is for others; "
                "try again shortly.",
                retry_after=1.0,
            )


def _lacks_images(output: RequestOutput) -> bool:
    """Whether vLLM has failed a request before its first token, as where its engine has not got an image."""
    return any(choice.finish_reason == "error" and not choice.token_ids for choice in output.outputs)


def _info(llm: AsyncLLM, processor: PruningProcessor, tool_format: str | None, methods: Sequence[str]) -> EngineInfo:
    model, architecture = llm.model_config, processor.architecture
    return EngineInfo(
        engine="vllm",
        architecture=model.architecture,
        context_length=model.max_model_len,
        vision_tokens=architecture.vision_tokens,
        dtype=str(model.dtype).removeprefix("torch."),
        device=current_platform.device_type,
        methods=methods_for(architecture.has_cls_token, methods),
        sampling=recommended(model.get_diff_sampling_param()),
        tool_format=tool_format,
    )
