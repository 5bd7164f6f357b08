"""The embedded engine: a transformers model in this process, on a CPU or one GPU, with iteration-level batching."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from covervlm.kernels import warm_up
from covervlm.server.core.agreement import AnswerScores
from covervlm.server.core.caller import Caller
from covervlm.server.core.engine import EngineInfo, EngineStats
from covervlm.server.core.errors import EngineOverloaded, EngineUnavailable, InvalidRequest
from covervlm.server.core.fairness import FairTurns, has_room
from covervlm.server.core.generation import GenerationChunk, GenerationRequest, PromptReport, PromptTokens
from covervlm.server.core.tasks import in_thread
from covervlm.server.engines.detokenizer import PromptScores, vocabulary_of
from covervlm.server.engines.embedded.admission import Event, Job
from covervlm.server.engines.embedded.grammar import Grammars
from covervlm.server.engines.embedded.int8_weights import quantize
from covervlm.server.engines.embedded.mailbox import Mailbox
from covervlm.server.engines.embedded.model_runner import ModelRunner
from covervlm.server.engines.embedded.packed_weights import pack
from covervlm.server.engines.embedded.prefix_cache import PrefixCache
from covervlm.server.engines.embedded.runner import Runner
from covervlm.server.engines.embedded.scoring import Scoring
from covervlm.server.engines.embedded.seats import places
from covervlm.server.engines.embedded.step_limits import StepLimits
from covervlm.server.engines.embedded.worker import Worker
from covervlm.server.engines.faults import for_caller, is_out_of_memory
from covervlm.server.engines.recommended import recommended
from covervlm.server.models.base import Adapter
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from covervlm.server.selection.clip_relevance import ClipRelevance
from covervlm.server.selection.feature_cache import FeatureCache
from covervlm.server.selection.selector import methods_for

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_LAST_STEP_SECONDS = 300
"""How long stopping waits for answers that nobody has cancelled."""


@dataclass(frozen=True)
class TransformersEngineConfig:
    """How to load the model and how much to run at once.

    max_running: answers decoded together. max_waiting: requests that may queue before new ones are refused.
    limits: what is done for newcomers between two decoding steps, None for what suits the device.
    threads: torch's threads, None for its default. preprocess_workers: threads that tokenise and resize images.
    methods: pruning methods that requests may name, all where it is empty.
    quantization: "int8" rounds the language model's weights, which must be float32 on a CPU; "none" leaves them.
    runtime: what runs the language model, "torch" or, in float32 on a CPU, "openvino".
    clip_path: the CLIP checkpoint of the model's tower, None where it is not there.
    """

    model_path: str
    device: str = "auto"
    dtype: str = "auto"
    max_running: int = 32
    max_waiting: int = 256
    limits: StepLimits | None = None
    feature_cache_bytes: int = 512 * 2**20
    prefix_cache_bytes: int = 256 * 2**20
    threads: int | None = None
    preprocess_workers: int = 2
    methods: tuple[str, ...] = ()
    quantization: str = "none"
    runtime: str = "torch"
    clip_path: str | None = None


class TransformersEngine:
    """Engine over transformers' own model code; see `Worker` for how requests share the model."""

    def __init__(self, config: TransformersEngineConfig, load: Callable[[Checkpoint], Adapter] = load_adapter) -> None:
        """load: makes the adapter, in a thread of its own; the model need not come from a folder."""
        self._config = config
        self._load = load
        self._cache = FeatureCache(config.feature_cache_bytes)
        self._prefixes = PrefixCache(config.prefix_cache_bytes)
        self._pool = ThreadPoolExecutor(config.preprocess_workers, thread_name_prefix="covervlm-preprocess")
        self._adapter: Adapter | None = None
        self._info: EngineInfo | None = None
        self._worker: Worker | None = None
        self._grammars: Grammars | None = None
        self._turns = FairTurns(config.preprocess_workers)
        self._open: set[Mailbox] = set()
        self._stopping = False

    async def start(self) -> None:
        """Load the model and compile the kernels. Raises OSError or ValueError for an unusable checkpoint."""
        loop = asyncio.get_running_loop()
        if self._config.threads is not None:
            torch.set_num_threads(self._config.threads)
        config = self._config
        checkpoint = Checkpoint(config.model_path, config.device, config.dtype)
        self._adapter = adapter = await loop.run_in_executor(None, self._load, checkpoint)
        if adapter.embeddings.weight.is_cuda:
            # cuDNN plans its attention anew for every length of a prompt, which takes it 48 ms on an H200.
            torch.backends.cuda.enable_cudnn_sdp(False)
        if config.quantization == "int8":
            await loop.run_in_executor(None, quantize, adapter)
        runner = await loop.run_in_executor(None, _runner, adapter, config.runtime)
        await loop.run_in_executor(None, _compile_kernels, adapter)
        self._grammars = grammars = await loop.run_in_executor(
            None, Grammars, adapter.tokenizer, adapter.vocabulary_size, adapter.eos_ids, config.preprocess_workers
        )
        self._info = _info(adapter, self._config.methods)
        self._worker = Worker(
            adapter,
            runner,
            self._cache,
            grammars,
            self._prefixes,
            max_running=config.max_running,
            clip=None if config.clip_path is None else ClipRelevance(config.clip_path, adapter),
            limits=config.limits or StepLimits.for_device(adapter.embeddings.weight.device),
            on_end=functools.partial(_call_soon, loop, self._close_mailboxes),
        )
        self._worker.start()

    async def stop(self) -> None:
        """Refuse new requests, finish the running ones, end the threads and let go of the model."""
        self._stopping = True
        if self._worker is not None:
            self._worker.drain()
            await asyncio.get_running_loop().run_in_executor(None, self._worker.join, _LAST_STEP_SECONDS)
            if self._worker.is_alive():
                log.error("the engine's last step does not end; it will be killed with the process")
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._grammars is not None:
            self._grammars.close()
        self._worker = None

    def abandon(self) -> None:
        """As the process ends, without an event loop: wait for the step that is under way, and drop all answers.

        A thread that is at work inside torch when the interpreter ends aborts the process.
        """
        self._stopping = True
        if self._worker is not None:
            self._worker.abandon()
            self._worker.join(_LAST_STEP_SECONDS)

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineUnavailable("The model is not loaded yet; wait for /ready.")
        return self._info

    @property
    def adapter(self) -> Adapter:
        """The loaded model behind its architecture's adapter. Raises EngineUnavailable before that."""
        if self._adapter is None:
            raise EngineUnavailable("The model is not loaded yet.")
        return self._adapter

    @property
    def ready(self) -> bool:
        return self._worker is not None and self._worker.is_alive() and not self._stopping

    @property
    def vision_tower(self) -> torch.nn.Module | None:
        return None if self._adapter is None else self._adapter.vision_tower

    def stats(self) -> EngineStats:
        worker = self._worker
        return EngineStats(
            running=worker.running if worker else 0,
            waiting=(worker.waiting if worker else 0) + len(self._turns),
            cache_bytes=self._cache.bytes,
            cache_hits=self._cache.hits,
            cache_misses=self._cache.misses,
            prefix_cache_bytes=self._prefixes.bytes,
        )

    def check_image(self, width: int, height: int) -> None:
        if self._adapter is not None:
            self._adapter.architecture.cost(width, height, self._adapter.chat.image_processor)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationChunk, None]:
        """Chunks of all choices as they are decoded; closing the iterator drops the request at the next step."""
        if request.sampling.n > (most := places(self._config.max_running, request.caller)):
            n = request.sampling.n
            message = (
                f"n is {n}, but this server decodes {most} answers at once for one caller; ask for {most} at most."
            )
            raise InvalidRequest(message, param="n", code="invalid_value")
        unfinished = request.sampling.n
        mailbox = Mailbox(asyncio.get_running_loop())
        job = Job(request, mailbox.post, generates=True)
        async with contextlib.aclosing(self._events(job, mailbox)) as events:
            async for chunk in events:
                assert isinstance(chunk, GenerationChunk)
                yield chunk
                unfinished -= chunk.finish_reason is not None
                if not unfinished:
                    return

    async def prune(self, request: GenerationRequest) -> PromptReport:
        """What the request's policy would keep of each image."""
        return (await self._prepared(request)).report

    async def assemble(self, request: GenerationRequest) -> tuple[Tensor, Tensor]:
        """What the language model would read, as `Adapter.assemble` returns it."""
        job = await self._prepared(request)
        return job.embeddings, job.positions

    async def _prepared(self, request: GenerationRequest) -> Job:
        mailbox = Mailbox(asyncio.get_running_loop())
        job = Job(request, mailbox.post, generates=False)
        async with contextlib.aclosing(self._events(job, mailbox)) as events:
            await anext(events)
        return job

    async def score(self, request: GenerationRequest, answer: Sequence[int]) -> AnswerScores:
        """In the engine's thread alone: what nobody waits for keeps no thread from preprocessing."""
        worker, adapter = self._serving()
        costs = [adapter.cost(part) for part in request.images]
        with request.caller.holding(sum(cost.kept for cost in costs) + max((cost.work for cost in costs), default=0)):
            scoring = Scoring(request, answer)
            worker.score(scoring)
            return await asyncio.wrap_future(scoring.scores)

    def expected(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._worker is None else self._worker.arriving()

    async def tokenize(self, request: GenerationRequest) -> PromptTokens:
        """The model is only asked where there are images."""
        worker, _ = self._serving()
        worker.admission.pruner(request.pruning)
        report = await self.prune(request) if request.images else None

        def tokens(adapter: Adapter) -> PromptTokens:
            if report is None:
                ids = adapter.tokenize(request.prompt, request.template, request.tools)
            else:
                ids = tuple(report.token_ids)
            return PromptTokens(ids, adapter.chat.names(ids))

        return await self._of_tokenizer(tokens, request.caller)

    async def detokenize(self, ids: Sequence[int], caller: Caller) -> str:
        return await self._of_tokenizer(lambda adapter: adapter.chat.detokenize(ids, adapter.context_length), caller)

    async def _of_tokenizer(self, ask: Callable[[Adapter], Result], caller: Caller) -> Result:
        worker, adapter = self._serving()
        self._check_room(worker, caller)
        with worker.arriving():
            async with self._turns.turn(caller.owner, leaves=int(caller.has_key)):
                return await in_thread(self._pool, ask, adapter)

    def _serving(self) -> tuple[Worker, Adapter]:
        if self._worker is None or self._adapter is None or not self.ready:
            raise EngineUnavailable("The model is not being served right now; try another replica or wait for /ready.")
        return self._worker, self._adapter

    async def _events(self, job: Job, mailbox: Mailbox) -> AsyncGenerator[Event, None]:
        """Submit a job and yield what the worker emits for it; raises what it emits as an exception."""
        worker, adapter = self._serving()
        self._check_room(worker, job.request.caller)
        try:
            with worker.arriving():
                await self._opened(job, worker, adapter)
                self._open.add(mailbox)
                worker.submit(job)
            while True:
                event = await mailbox.next()
                if isinstance(event, GenerationChunk) and event.prompt is not None and job.scores is not None:
                    event = replace(
                        event, prompt=await in_thread(self._pool, _scored, event.prompt, job.scores, adapter)
                    )
                yield event
        finally:
            job.cancelled = True
            self._open.discard(mailbox)

    async def _opened(self, job: Job, worker: Worker, adapter: Adapter) -> None:
        """Once it is the owner's turn, have the job opened in a thread, and its memory counted."""
        request, caller = job.request, job.request.caller
        async with self._turns.turn(caller.owner, leaves=int(caller.has_key)):
            costs = [adapter.cost(part) for part in request.images]
            caller.hold(sum(cost.kept for cost in costs))
            try:
                # One image after another: only one takes more than what is kept of it.
                with caller.holding(max((cost.work for cost in costs), default=0)):
                    await in_thread(self._pool, worker.admission.open, job)
            except Exception as error:
                if is_out_of_memory(error):
                    raise for_caller(error) from None
                raise

    def _check_room(self, worker: Worker, caller: Caller) -> None:
        limit, waiting = self._config.max_waiting, worker.waiting + len(self._turns)
        if waiting >= limit:
            raise EngineOverloaded(f"{limit} requests are already waiting; try again shortly.", retry_after=1.0)
        mine = worker.waiting_of(caller.owner) + self._turns.count(caller.owner)
        if caller.has_key and not has_room(mine=mine, total=waiting, limit=limit):
            raise EngineOverloaded(
                f"{mine} requests of this key are already waiting, and the rest of the queue is for others; "
                "try again shortly.",
                retry_after=1.0,
            )

    def _close_mailboxes(self) -> None:
        """The worker has ended: fail every request that still waits for it."""
        for mailbox in self._open:
            mailbox.close()


def _runner(adapter: Adapter, runtime: str) -> Runner:
    """Raises ValueError where this runtime cannot run the model."""
    runner: Runner
    if runtime == "openvino":
        from covervlm.server.engines.embedded.paged_runner import load_paged  # OpenVINO need not be installed

        runner = load_paged(adapter)
    else:
        runner = ModelRunner(adapter)
    pack(adapter)
    return runner


def _compile_kernels(adapter: Adapter) -> None:
    weight = adapter.embeddings.weight
    warm_up(weight.device, tokens=(adapter.architecture.vision_tokens or 576,), dtype=weight.dtype)


def _scored(prompt: PromptReport, scores: PromptScores, adapter: Adapter) -> PromptReport:
    """The report with an entry for every token: too many to make in the engine's thread."""
    return replace(prompt, logprobs=vocabulary_of(adapter.tokenizer).prompt_entries(prompt.token_ids, scores))


def _info(adapter: Adapter, methods: Sequence[str]) -> EngineInfo:
    weight, architecture = adapter.embeddings.weight, adapter.architecture
    return EngineInfo(
        engine="transformers",
        architecture=type(adapter.model).__name__,
        context_length=adapter.context_length,
        vision_tokens=architecture.vision_tokens,
        dtype=str(weight.dtype).removeprefix("torch."),
        device=str(weight.device),
        methods=methods_for(architecture.has_cls_token, methods, scales=architecture.free_resolution),
        sampling=recommended(adapter.model.generation_config.to_diff_dict()),
        tool_format=adapter.chat.template.tool_format,
    )


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    # On a closed loop nothing waits any more.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call)
