"""An event loop in a thread of its own, on which blocking callers, notebooks among them, run coroutines."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from typing import Any, TypeVar

Result = TypeVar("Result")

_END = object()


class Background:
    """Safe to use from several threads; a caller that is interrupted cancels what it waits for."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="covervlm-local", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._loop.is_closed()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What the coroutine returns or raises; RuntimeError once this is closed."""
        if self.closed:
            work.close()
            raise RuntimeError("the model is closed; load it again with covervlm.load")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # changes nothing where it is done

    def iterate(self, items: AsyncGenerator[Result, None]) -> Iterator[Result]:
        """The generator's items, each made when it is asked for; leaving early closes the generator."""

        async def following() -> Any:
            return await anext(items, _END)

        try:
            while (item := self.run(following())) is not _END:
                yield item
        finally:
            if not self.closed:
                self.run(items.aclose())  # type: ignore[arg-type]

    def close(self) -> None:
        """End the thread; what still runs is dropped."""
        if not self.closed:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
