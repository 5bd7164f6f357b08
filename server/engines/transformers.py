"""The embedded engine: a transformers model in this process, on a CPU or one GPU, with iteration-level batching."""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from covervlm.kernels import warm_up
from covervlm.server.engines.base import (
    EngineInfo,
    EngineOverloaded,
    EngineStats,
    EngineUnavailable,
    GenerationChunk,
    GenerationRequest,
    ImagePart,
    InvalidRequest,
    PromptReport,
)
from covervlm.server.engines.faults import for_caller, is_out_of_memory
from covervlm.server.engines.feature_cache import FeatureCache
from covervlm.server.engines.mailbox import Mailbox
from covervlm.server.engines.selection import methods_for, pruner_for
from covervlm.server.engines.sequence import Emit, Event, Job
from covervlm.server.engines.worker import StepLimits, Worker
from covervlm.server.fairness import FairTurns, has_room
from covervlm.server.models.base import Adapter
from covervlm.server.models.registry import Checkpoint, load_adapter

log = logging.getLogger(__name__)

_LAST_STEP_SECONDS = 300
"""How long stopping waits for answers that nobody has cancelled."""


@dataclass(frozen=True)
class TransformersEngineConfig:
    """How to load the model and how much to run at once.

    max_running: answers decoded together. max_waiting: requests that may queue before new ones are refused.
    limits: what is done for newcomers between two decoding steps, None for what suits the device.
    threads: torch's threads, None for its default. preprocess_workers: threads that tokenise and resize images.
    """

    model_path: str
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    max_running: int = 32
    max_waiting: int = 256
    limits: StepLimits | None = None
    feature_cache_bytes: int = 512 * 2**20
    threads: int | None = None
    preprocess_workers: int = 2


class TransformersEngine:
    """Engine over transformers' own model code; see `Worker` for how requests share the model."""

    def __init__(self, config: TransformersEngineConfig) -> None:
        self._config = config
        self._cache = FeatureCache(config.feature_cache_bytes)
        self._pool = ThreadPoolExecutor(config.preprocess_workers, thread_name_prefix="covervlm-preprocess")
        self._adapter: Adapter | None = None
        self._worker: Worker | None = None
        self._turns = FairTurns(config.preprocess_workers)
        self._open: set[Mailbox] = set()
        self._stopping = False

    async def start(self) -> None:
        """Load the model and compile the kernels. Raises OSError or ValueError for an unusable checkpoint."""
        loop = asyncio.get_running_loop()
        if self._config.threads is not None:
            torch.set_num_threads(self._config.threads)
        config = self._config
        checkpoint = Checkpoint(config.model_path, config.device, config.dtype, config.trust_remote_code)
        self._adapter = await loop.run_in_executor(None, load_adapter, checkpoint)
        await loop.run_in_executor(None, warm_up)
        self._worker = Worker(
            self._adapter,
            self._cache,
            max_running=config.max_running,
            limits=config.limits or StepLimits.for_device(self._adapter.embeddings.weight.device),
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
                log.error("the engine's last step does not end; it ends with the process")
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._worker = None

    @property
    def info(self) -> EngineInfo:
        adapter = self._loaded()
        weight = adapter.embeddings.weight
        return EngineInfo(
            engine="transformers",
            architecture=type(adapter.model).__name__,
            context_length=adapter.context_length,
            vision_tokens=adapter.vision_tokens,
            dtype=str(weight.dtype).removeprefix("torch."),
            device=str(weight.device),
            methods=methods_for(adapter.has_cls_token),
        )

    @property
    def ready(self) -> bool:
        return self._worker is not None and self._worker.is_alive() and not self._stopping

    @property
    def vision_tower(self) -> Any:
        """The loaded model's vision tower, for who would otherwise load the same weights again; None if it has none."""
        model = getattr(getattr(self._adapter, "model", None), "model", None)
        return getattr(model, "vision_tower", None)

    def stats(self) -> EngineStats:
        worker = self._worker
        return EngineStats(
            running=worker.running if worker else 0,
            waiting=(worker.waiting if worker else 0) + len(self._turns),
            cache_bytes=self._cache.bytes,
            cache_hits=self._cache.hits,
            cache_misses=self._cache.misses,
        )

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationChunk, None]:
        """Chunks of all choices as they are decoded; closing the iterator drops the request at the next step."""
        if request.sampling.n > self._config.max_running:
            raise InvalidRequest(
                f"n is {request.sampling.n}, but this server decodes at most {self._config.max_running} at once.",
                param="n",
            )
        unfinished = request.sampling.n
        async with contextlib.aclosing(self._events(request, generates=True)) as events:
            async for chunk in events:
                assert isinstance(chunk, GenerationChunk)
                yield chunk
                unfinished -= chunk.finish_reason is not None
                if not unfinished:
                    return

    async def prune(self, request: GenerationRequest) -> PromptReport:
        """What the request's policy would keep of each image."""
        async with contextlib.aclosing(self._events(request, generates=False)) as events:
            report = await anext(events)
            assert isinstance(report, PromptReport)
            return report

    async def _events(self, request: GenerationRequest, *, generates: bool) -> AsyncGenerator[Event, None]:
        """Submit a request and yield what the worker emits for it; raises what it emits as an exception."""
        worker = self._worker
        if worker is None or not self.ready:
            raise EngineUnavailable("The model is not being served right now; try another replica or wait for /ready.")
        self._check_room(worker, request.owner)
        loop = asyncio.get_running_loop()
        mailbox = Mailbox(loop)
        async with self._turns.turn(request.owner):
            try:
                job = await loop.run_in_executor(self._pool, self._prepare, request, mailbox.post, generates)
            except Exception as error:
                if is_out_of_memory(error):
                    raise for_caller(error) from None
                raise
        self._open.add(mailbox)
        try:
            worker.submit(job)
            while True:
                yield await mailbox.next()
        finally:
            job.cancelled = True
            self._open.discard(mailbox)

    def _check_room(self, worker: Worker, owner: str | None) -> None:
        limit, waiting = self._config.max_waiting, worker.waiting + len(self._turns)
        if waiting >= limit:
            raise EngineOverloaded(f"{limit} requests are already waiting; try again shortly.", retry_after=1.0)
        mine = worker.waiting_of(owner) + self._turns.count(owner)
        if owner is not None and not has_room(mine=mine, total=waiting, limit=limit):
            raise EngineOverloaded(
                f"{mine} requests of this key are already waiting, and the rest of the queue is for others; "
                "try again shortly.",
                retry_after=1.0,
            )

    def _close_mailboxes(self) -> None:
        """The worker has ended: whoever still waits for it is told."""
        for mailbox in self._open:
            mailbox.close()

    def _prepare(self, request: GenerationRequest, emit: Emit, generates: bool) -> Job:
        """Tokenise, look the images up, and preprocess those that no cache holds; runs in the pool."""
        adapter = self._loaded()
        started = time.perf_counter()
        pruner = pruner_for(request.pruning, adapter.pruner_params, has_cls_token=adapter.has_cls_token)
        prompt = adapter.tokenize(request.messages)
        variant = "+cls" if pruner.uses_cls_attention else ""
        keys = tuple(part.digest + variant for part in request.images)
        known, pixels = {}, {}
        for key, part in zip(keys, request.images, strict=True):
            if key in known or key in pixels:
                continue
            if (image := self._cache.get(key)) is not None:
                known[key] = image
            else:
                pixels[key] = (
                    adapter.preprocess(part.image)
                    if isinstance(part, ImagePart)
                    else adapter.preprocess_video(part.frames, part.fps)
                )
        job = Job(request, prompt, pruner, keys, known, pixels, emit, generates)
        job.seconds["preprocess"] = time.perf_counter() - started
        return job

    def _loaded(self) -> Adapter:
        if self._adapter is None:
            raise EngineUnavailable("The model is not loaded yet; wait for /ready.")
        return self._adapter


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    # A closed loop has nobody left who waits.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call)
