"""The demo engine with a gate before every decoding step, so that tests count steps instead of time."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from covervlm.server.demo import model_path
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig


async def until(condition: Callable[[], object]) -> None:
    """Return once the condition holds."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


class Gate:
    """Holds decoding steps. `rows`: how many answers each step had that has begun, the held one included."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.rows: list[int] = []
        self._permits = threading.Semaphore(0)
        self._open = False
        self._let_through = 0
        runner = engine._worker._runner
        decode = runner.decode

        def held(tokens, positions):
            self.rows.append(len(tokens))
            if not self._open:
                self._permits.acquire()
            return decode(tokens, positions)

        runner.decode = held

    async def step(self) -> None:
        """Let the next step through, once it is held, and wait until the one after it is."""
        await until(lambda: len(self.rows) > self._let_through)
        self._let_through += 1
        self._permits.release()
        await until(lambda: len(self.rows) > self._let_through)

    def open(self) -> None:
        self._open = True
        self._permits.release()


@asynccontextmanager
async def running(**options: object) -> AsyncIterator[TransformersEngine]:
    """A started engine with these options."""
    engine = TransformersEngine(TransformersEngineConfig(str(model_path()), threads=1, **options))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


@asynccontextmanager
async def gated(**options: object) -> AsyncIterator[tuple[TransformersEngine, Gate]]:
    """The same, held before its first step. The gate is open in the end."""
    async with running(**options) as engine:
        gate = Gate(engine)
        try:
            yield engine, gate
        finally:
            gate.open()
