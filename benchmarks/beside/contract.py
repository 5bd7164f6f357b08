"""What the comparison asks of a server, whoever made it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from speed.workload import Asked

TOKENS = 8
"""Length of every answer, whatever the model thinks of it."""


@dataclass(frozen=True)
class Answer:
    """Seconds from sending to the first token and to the end, and how long prompt and answer were."""

    first: float
    end: float
    prompt_tokens: int
    tokens: int

    @property
    def further(self) -> float:
        """Seconds for a token after the first."""
        return (self.end - self.first) / (self.tokens - 1)


Ask = Callable[[Asked], Awaitable[Answer]]


@dataclass(frozen=True)
class Model:
    """The checkpoint, and a folder for what peers make of it."""

    folder: Path
    made: Path


class Peer(Protocol):
    """A server in one configuration."""

    name: str
    one_by_one: bool
    """Whether it answers one request at a time, so that many at once only wait."""

    def lacking(self) -> str:
        """What has to be installed before it starts; empty if nothing."""
        ...

    def started(self, model: Model) -> AbstractAsyncContextManager[list[tuple[str, Ask]]]:
        """Runs the server for the time of the block; gives one way to ask, or several by name that share it."""
        ...


@asynccontextmanager
async def entered(server: AbstractContextManager[str]) -> AsyncIterator[str]:
    """A server's URL; others start while it starts."""
    url = await asyncio.to_thread(server.__enter__)
    try:
        yield url
    finally:
        await asyncio.to_thread(server.__exit__, None, None, None)
