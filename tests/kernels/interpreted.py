"""Triton kernels on the CPU: runs calls in a process of its own, where Triton interprets what it would compile.

Triton decides at import whether it interprets, and other tests may have imported it already, hence the process. The
interpreter runs the programs of a launch one after the other, so a kernel whose programs wait for one another would
hang; `concurrently` lets them take turns instead.
"""

import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from typing import Any


def start() -> ProcessPoolExecutor:
    """A pool of one process that interprets."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_prepare)


def _prepare() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    import torch

    torch.set_num_threads(1)


def call(module: str, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a function by name, so that its module is imported over there."""
    return getattr(import_module(module), name)(*args, **kwargs)


def concurrently(module: str, name: str, *args: Any, **kwargs: Any) -> Any:
    """Like `call`, but the programs of every launch take turns, a thread each: at a volatile load the next may go on.

    Triton's interpreter is not safe to use from several threads at once, so only one program runs at any time.
    """
    from triton.runtime import interpreter

    local, turn = threading.local(), threading.Lock()
    builder, load = interpreter.InterpreterBuilder, interpreter.InterpreterBuilder.create_masked_load
    sequential = interpreter.GridExecutor.__call__
    failures: list[BaseException] = []

    def load_in_turn(self: Any, *loaded: Any) -> Any:
        if loaded[-1]:
            turn.release()
            time.sleep(1e-4)
            turn.acquire()
            if failures:
                raise RuntimeError("another program failed")
        return load(self, *loaded)

    builder.grid_idx = property(lambda _: local.place, lambda _, place: setattr(local, "place", place))
    builder.create_masked_load = load_in_turn
    interpreter.GridExecutor.__call__ = lambda *launched, **named: _launch_in_turns(turn, failures, *launched, **named)
    try:
        return call(module, name, *args, **kwargs)
    finally:
        interpreter.GridExecutor.__call__ = sequential
        builder.create_masked_load = load
        del builder.grid_idx


def _launch_in_turns(
    turn: threading.Lock, failures: list[BaseException], executor: Any, *args: Any, **kwargs: Any
) -> None:
    from triton.runtime import interpreter

    known = {name: value for name, value in kwargs.items() if name in executor.arg_names}
    names = dict(zip(executor.arg_names, args, strict=False)) | known
    scope = interpreter._patch_lang(executor.fn)
    try:
        converted = {
            name: value if name in executor.constexprs else interpreter._implicit_cvt(value)
            for name, value in names.items()
        }
        grid = (*executor.grid, 1, 1)[:3]
        builder = interpreter.interpreter_builder
        builder.set_grid_dim(*grid)

        def program(place: tuple[int, int, int]) -> None:
            with turn:
                try:
                    builder.set_grid_idx(*place)
                    executor.fn(**converted)
                except BaseException as failure:
                    failures.append(failure)

        places = [(x, y, z) for x in range(grid[0]) for y in range(grid[1]) for z in range(grid[2])]
        threads = [threading.Thread(target=program, args=(place,), daemon=True) for place in places]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        for thread in threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            failures.append(TimeoutError("programs wait for one another for ever"))
    finally:
        scope.restore()
    if failures:
        raise failures[0]


def shared_out(module: str, affinity: Any, counts: Any, allowed: Any, width: int, capacity: int) -> Any:
    """`launch` with tiles of a few columns, its programs running at the same time: picks and evaluations."""
    greedy = import_module(module)
    full = greedy._GROUP_ELEMENTS
    greedy._GROUP_ELEMENTS = 4 * affinity.shape[1]
    try:
        run = concurrently if os.environ.get("TRITON_INTERPRET") == "1" else call
        return run(module, "launch", affinity, counts, allowed, width, capacity=capacity, count=True)
    finally:
        greedy._GROUP_ELEMENTS = full
