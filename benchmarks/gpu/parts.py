"""The parts of the benchmark in their order, each in a process of its own that is ended when its time is up."""

import contextlib
import os
import signal
import time
import traceback
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection

from transformers.utils.logging import disable_progress_bar

from gpu.device import INTERPRETED
from gpu.sizes import Sizes
from gpu.table import Table

_CONTEXT = get_context("forkserver")
# Imported once, and then there in every part. On a GPU each part imports for itself: where an import looks for the
# device, no fork of its process can use that any more.
_CONTEXT.set_forkserver_preload(["covervlm.server.engines.embedded.engine"] if INTERPRETED else [])


@dataclass(frozen=True)
class Part:
    """seconds: the most that it may take on a GPU. arguments: of `run` in the module, before the sizes."""

    title: str
    module: str
    seconds: int
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """error: why there is no table, or what is wrong with it."""

    part: Part
    seconds: float
    table: Table | None = None
    error: str = ""


def parts(sizes: Sizes) -> list[Part]:
    served = [
        Part(f"Served: {serving.shape.name}", "gpu.served", 100, (name,)) for name, serving in sizes.servings.items()
    ]
    return [
        Part("Kernel tests on the device", "gpu.kernel_tests", 120),
        Part("Kernels by dtype", "gpu.dtypes", 45),
        Part("Selection times", "gpu.selection_times", 60),
        Part("Selection as a CUDA graph", "gpu.graphs", 45),
        Part("Selections, against the CPU's", "gpu.picks", 60),
        Part("Answers, against transformers' generate", "gpu.answers", 75),
        *served,
        Part("vLLM", "gpu.vllm_engine", 60),
    ]


def run(part: Part, sizes: Sizes, seconds: float) -> Outcome:
    """Its table, as far as it has come, or its error; whatever it has started is ended with it."""
    started = time.perf_counter()
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_run, args=(theirs, part, sizes))
    process.start()
    theirs.close()
    table, error = None, ""
    try:
        while ours.poll(max(0.0, seconds - (time.perf_counter() - started))):
            match ours.recv():
                case Table() as table:
                    error = table.problem
                case None:
                    break
                case error:
                    break
        else:
            error = f"not done after {seconds:.0f} s"
    except EOFError:
        error = "its process has ended without a word"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    return Outcome(part, time.perf_counter() - started, table, error)


def _run(answer: Connection, part: Part, sizes: Sizes) -> None:
    """Sends tables, each of which takes the place of those before, then None, or else an error."""
    os.setsid()
    disable_progress_bar()
    try:
        made = import_module(part.module).run(*part.arguments, sizes)
        for table in [made] if isinstance(made, Table) else made:
            answer.send(table)
        answer.send(None)
    except BaseException as error:
        traceback.print_exc()
        answer.send(f"{type(error).__name__}: {error}")
