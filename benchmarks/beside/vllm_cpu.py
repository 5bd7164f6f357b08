"""Plain vLLM, without our plugin, on its CPU build."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from speed import peers

from beside.chat_stream import asking
from beside.contract import Ask, Model, entered


@dataclass(frozen=True)
class VllmCpu:
    """`python` is its environment's interpreter."""

    python: Path
    name: str = "vLLM alone"
    one_by_one: bool = False

    def lacking(self) -> str:
        return "" if self.python.exists() else "make .venv-vllm/.ready"

    @asynccontextmanager
    async def started(self, model: Model) -> AsyncIterator[list[tuple[str, Ask]]]:
        server = peers.vllm_serve(self.python, model.folder, "model")
        async with entered(server) as url, asking(url, "model", {"ignore_eos": True}) as (ask,):
            yield [(self.name, ask)]
