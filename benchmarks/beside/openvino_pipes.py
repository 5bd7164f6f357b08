"""OpenVINO GenAI, exported by optimum-intel: in float32 throughout or with eight-bit weights, pruned or not."""

import asyncio
import json
import os
import time
from asyncio import Queue
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from speed.workload import Asked

from beside.contract import TOKENS, Answer, Ask, Model
from beside.own_environment import make_once, piped_server

SERVER = Path(__file__).with_name("openvino_server.py")


@dataclass(frozen=True)
class OpenVino:
    """`weights` as optimum-cli calls them, fp32 or int8. With int8 all else is as OpenVINO chooses for this CPU.

    ratio: percent of the vision tokens that its CDPruner drops.
    """

    python: Path
    weights: str
    ratio: int = 0
    one_by_one: bool = False

    @property
    def name(self) -> str:
        pruned = f", CDPruner {self.ratio} %" if self.ratio else ""
        return f"OpenVINO GenAI, {'float32' if self.weights == 'fp32' else self.weights}{pruned}"

    def lacking(self) -> str:
        return "" if self.python.exists() else "make .venv-bench-peers/.ready"

    @asynccontextmanager
    async def started(self, model: Model) -> AsyncIterator[list[tuple[str, Ask]]]:
        folder = await asyncio.to_thread(
            make_once, model.made / f"openvino-{self.weights}", lambda target: self._export(model.folder, target)
        )
        precision = ("float32",) if self.weights == "fp32" else ()
        numbers = (str(TOKENS), str(os.cpu_count()), str(self.ratio))
        command = (str(self.python), str(SERVER), str(folder), *numbers, *precision)
        async with piped_server(*command) as (process, _):
            pipes = _Pipes(process)
            reader = asyncio.create_task(pipes.read())
            try:
                yield [(self.name, pipes.ask)]
            finally:
                reader.cancel()

    def _export(self, source: Path, target: Path) -> tuple[str, ...]:
        command = (str(self.python.with_name("optimum-cli")), "export", "openvino", "--model", str(source))
        return (*command, "--task", "image-text-to-text", "--weight-format", self.weights, str(target))


class _Pipes:
    """Requests to the process, and its lines to those who wait for them."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._numbers = count()
        self._waiting: dict[int, Queue[dict[str, Any] | None]] = {}
        self._ended = False

    async def read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            said = json.loads(line)
            self._waiting[said["id"]].put_nowait(said)
        self._ended = True
        for lines in self._waiting.values():
            lines.put_nowait(None)

    async def ask(self, asked: Asked) -> Answer:
        assert self._process.stdin is not None
        if self._ended:
            raise RuntimeError("OpenVINO's process ended")
        number = next(self._numbers)
        lines = self._waiting[number] = Queue()
        started, first, tokens, prompt = time.perf_counter(), 0.0, 0, 0
        request = {"id": number, "image": asked.image, "question": asked.question}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        while tokens < TOKENS:
            said = await lines.get()
            if said is None:
                raise RuntimeError("OpenVINO's process ended")
            first = first or time.perf_counter() - started
            tokens, prompt = said["tokens"], said["prompt_tokens"]
        del self._waiting[number]
        return Answer(first, time.perf_counter() - started, prompt, tokens)
