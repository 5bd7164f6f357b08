"""A share of the pruned answers, compared with what the unpruned model makes of them once nobody waits."""

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from dataclasses import dataclass, replace
from typing import Protocol, cast

from covervlm.server.core.agreement import Agreement, agreement
from covervlm.server.core.caller import Caller, InFlight
from covervlm.server.core.engine import Engine
from covervlm.server.core.errors import EngineOverloaded, EngineUnavailable, InvalidRequest
from covervlm.server.core.generation import GenerationChunk, GenerationRequest, PruningPolicy, SamplingParams
from covervlm.server.shadow.labels import budget_label
from covervlm.server.shadow.waiting import Shadow, WaitingShadows

log = logging.getLogger(__name__)


class ShadowObserver(Protocol):
    """Who is told what came of shadows: figures alone, nothing of a request or an answer."""

    def compared(self, method: str, budget: str, seen: Agreement) -> None: ...

    def dropped(self, why: str, count: int) -> None:
        """why: full, memory, expired, too_long, failed or stopped."""
        ...


@dataclass(frozen=True)
class ShadowConfig:
    """share: of the pruned answers, drawn from the seed. most, most_bytes: what may wait. budgets: those with names."""

    share: float
    seed: int = 0
    most: int = 64
    most_bytes: int = 256 * 2**20
    budgets: Collection[str] = ()


class Shadows:
    """Compares the drawn answers one after the other. For one event loop; `start` and `stop` bound its life."""

    def __init__(self, engine: Engine, memory: InFlight, observer: ShadowObserver, config: ShadowConfig) -> None:
        """memory: of requests in flight; it may have all of the shadows' part back."""
        self._engine = engine
        self._memory = memory
        self._observer = observer
        self._config = config
        self._random = random.Random(config.seed)
        self._waiting = WaitingShadows(memory, observer.dropped, most=config.most, most_bytes=config.most_bytes)
        self._loop: asyncio.Task[None] | None = None
        self._current: tuple[Shadow, asyncio.Task[Agreement | str]] | None = None
        memory.reclaim = self.make_room

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def bytes(self) -> int:
        """What they hold, the one that is compared included."""
        return self._waiting.bytes

    def start(self) -> None:
        """Unless that is done."""
        if self._loop is None:
            self._loop = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Drop all of them, the running one within a step of the engine."""
        self._waiting.drop("stopped")
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        self._waiting.drop("stopped")

    def watch(
        self, request: GenerationRequest, chunks: AsyncIterator[GenerationChunk]
    ) -> AsyncIterator[GenerationChunk]:
        """The same chunks; where the draw falls on the request, its answer is kept for later.

        Any sampling will do, since both models read the answer that was served. Of several choices it is the first, and
        none whose client went away or whose generation failed.
        """
        if not (request.pruning.prunes and request.images) or self._random.random() >= self._config.share:
            return chunks
        return self._watched(request, cast(AsyncGenerator[GenerationChunk, None], chunks))

    def expected(self) -> contextlib.AbstractContextManager[None]:
        """To be open while a request of any kind is answered: nothing is compared then."""
        return self._engine.expected()

    def make_room(self) -> bool:
        """Let go of all that they hold; whether there was anything. What runs still ends its step in what it has."""
        found = self._waiting.drop("memory")
        if self._current is None:
            return found
        shadow, task = self._current
        self._current = None
        self._waiting.release(shadow)
        self._observer.dropped("memory", 1)
        task.cancel()
        return True

    async def _watched(
        self, request: GenerationRequest, chunks: AsyncGenerator[GenerationChunk, None]
    ) -> AsyncGenerator[GenerationChunk, None]:
        answer: list[int] = []
        pruned = False
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                if chunk.prompt is not None:
                    pruned = any(image.kept < image.total for image in chunk.prompt.images)
                if chunk.index == 0:
                    answer += chunk.token_ids
                yield chunk
        if pruned and answer:
            self._waiting.push(Shadow(request, tuple(answer)))

    async def _run(self) -> None:
        while True:
            shadow = await self._waiting.pop()
            task = asyncio.create_task(self._compare(shadow))
            self._current = shadow, task
            try:
                await asyncio.wait((task,))
            finally:
                if not task.done():
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                if self._current is not None:  # else its memory was taken back
                    self._current = None
                    self._waiting.release(shadow)
                    self._tell(shadow.request.pruning, "stopped" if task.cancelled() else task.result())
            del shadow, task  # which hold the images

    def _tell(self, policy: PruningPolicy, seen: Agreement | str) -> None:
        if isinstance(seen, str):
            self._observer.dropped(seen, 1)
        else:
            self._observer.compared(policy.method, budget_label(policy, self._config.budgets), seen)

    async def _compare(self, shadow: Shadow) -> Agreement | str:
        """What was seen, or why nothing was."""
        try:
            async with asyncio.timeout(self._waiting.seconds_left(shadow)):
                return await self._agreement(shadow)
        except TimeoutError:
            return "expired"
        except EngineOverloaded:
            return "memory"
        except EngineUnavailable:
            return "stopped"
        except Exception as error:
            if isinstance(error, InvalidRequest) and error.code == "context_length_exceeded":
                return "too_long"
            log.warning("an answer could not be compared with the unpruned model's", exc_info=error)
            return "failed"

    async def _agreement(self, shadow: Shadow) -> Agreement:
        """Both models read the answer that was served (teacher forcing); nothing is written anew."""
        request, answer = shadow.request, shadow.answer
        pruned = replace(request.pruning, seed=request.selection_seed, return_indices=False)
        # An owner of its own, which no cache knows: nobody finds there what a shadow has left.
        caller = Caller(f"shadow-{secrets.token_hex(16)}", memory=self._memory)
        asked = replace(request, request_id="shadow", sampling=SamplingParams(), caller=caller)
        try:
            reference = await self._engine.score(replace(asked, pruning=PruningPolicy("none")), answer)
            served = await self._engine.score(replace(asked, pruning=pruned), answer)
        finally:
            caller.release()
        sampling = request.sampling
        likeliest_only = sampling.is_plain_argmax and sampling.grammar is None
        return agreement(answer, served, reference, likeliest_only=likeliest_only)
