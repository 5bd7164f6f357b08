"""Plain vLLM, without our plugin, on its CPU build."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from speed import peers

from beside.chat_stream import asking
from beside.contract import Ask, Model, entered


def published(model: Model) -> Path:
    """The checkpoint under the names of published LLaVAs, the only ones that vLLM knows for the tower's weights."""
    folder = model.made / "published"
    folder.mkdir(parents=True, exist_ok=True)
    for path in model.folder.iterdir():
        if path.suffix == ".safetensors":
            weights = load_file(path)
            renamed = {name.replace("vision_tower.", "vision_tower.vision_model."): weights[name] for name in weights}
            save_file(renamed, folder / path.name, {"format": "pt"})
        elif not (folder / path.name).exists():
            (folder / path.name).symlink_to(path.resolve())
    return folder


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
        server = peers.vllm_serve(self.python, await asyncio.to_thread(published, model), "model")
        async with entered(server) as url, asking(url, "model", {"ignore_eos": True}) as (ask,):
            yield [(self.name, ask)]
