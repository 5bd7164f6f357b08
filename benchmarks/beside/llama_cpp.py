"""llama.cpp's server, from a wheel that is built for AVX2."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from beside.chat_stream import asking
from beside.contract import Ask, Model
from beside.own_environment import make_once, piped_server

HERE = Path(__file__).parent


@dataclass(frozen=True)
class LlamaCpp:
    """`python` is the peers' interpreter. Weights in float32, the rest as by default: keys and values in half."""

    python: Path
    name: str = "llama.cpp, float32"
    one_by_one: bool = False

    def lacking(self) -> str:
        return "" if self.python.exists() else "make .venv-bench-peers/.ready"

    @asynccontextmanager
    async def started(self, model: Model) -> AsyncIterator[list[tuple[str, Ask]]]:
        python, export = str(self.python), str(HERE / "gguf_export.py")
        folder = await asyncio.to_thread(
            make_once, model.made / "gguf", lambda target: (python, export, str(model.folder), str(target))
        )
        files = (str(folder / "language.gguf"), str(folder / "tower.gguf"))
        command = (python, str(HERE / "llama_cpp_server.py"), *files, str(os.cpu_count()))
        async with (
            piped_server(*command) as (_, line),
            asking(line.rpartition(" ")[2], "model", {"ignore_eos": True}) as (ask,),
        ):
            yield [(self.name, ask)]
