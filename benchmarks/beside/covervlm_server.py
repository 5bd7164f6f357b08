"""Our server with either engine, unpruned and at some budgets: one process, told by request."""

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from speed.local_server import local_server
from speed.peers import VLLM_ON_ALL_CORES

from beside.chat_stream import asking
from beside.contract import Ask, Model, entered


@dataclass(frozen=True)
class Covervlm:
    """`options` are further ones of `covervlm serve`, `python` the interpreter of the environment that holds it."""

    name: str = "covervlm, embedded"
    options: tuple[str, ...] = ("--engine", "transformers")
    budgets: tuple[int, ...] = (192, 64)
    python: Path = Path(sys.executable)
    environment: Mapping[str, str] = field(default_factory=dict)
    one_by_one: bool = False

    @classmethod
    def on_vllm(cls, python: Path, budgets: tuple[int, ...] = (192, 64)) -> "Covervlm":
        """With vLLM's engine, as plain vLLM is started beside it."""
        options = ("--engine", "vllm", "--vllm-args=--enforce-eager --max-model-len 1024")
        environment = {"VLLM_CPU_KVCACHE_SPACE": "2", **VLLM_ON_ALL_CORES}
        return cls("covervlm, vLLM", options, budgets, python, environment)

    @classmethod
    def on_openvino(cls) -> "Covervlm":
        """With the embedded engine, and OpenVINO for the language model."""
        return cls("covervlm, --runtime openvino", ("--engine", "transformers", "--runtime", "openvino"))

    def lacking(self) -> str:
        return "" if self.python.exists() else f"make {self.python.parents[1]}/.ready"

    @asynccontextmanager
    async def started(self, model: Model) -> AsyncIterator[list[tuple[str, Ask]]]:
        variants = {f"{self.name}, unpruned": {"method": "none"}}
        variants |= {f"{self.name}, {keep} tokens": {"method": "mmtok", "keep_tokens": keep} for keep in self.budgets}
        bodies = [{"vision_pruning": fields, "ignore_eos": True} for fields in variants.values()]
        options = ("--model", str(model.folder), "--served-model-name", "model", *self.options)
        server = local_server(options, self.python, self.environment)
        async with entered(server) as url, asking(url, "model", *bodies) as asks:
            yield list(zip(variants, asks, strict=True))
