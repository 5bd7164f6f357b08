"""`transformers serve`, from the load benchmark's environment."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from speed import peers

from beside.chat_stream import asking
from beside.contract import Ask, Model, entered


@dataclass(frozen=True)
class TransformersServe:
    """`python` is its environment's interpreter."""

    python: Path
    name: str = "transformers serve"
    one_by_one: bool = True

    def lacking(self) -> str:
        return "" if self.python.exists() else "make .venv-load/.ready"

    @asynccontextmanager
    async def started(self, model: Model) -> AsyncIterator[list[tuple[str, Ask]]]:
        server = peers.transformers_serve(self.python, model.folder)
        async with entered(server) as url, asking(url, str(model.folder), {}, greets=True) as (ask,):
            yield [(self.name, ask)]
