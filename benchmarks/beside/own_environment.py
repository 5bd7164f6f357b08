"""Programs in the peers' environment: what they make of the checkpoint, and servers that print a line once they run."""

import asyncio
import os
import shutil
import subprocess
import threading
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

START_SECONDS = 300
LINE_BYTES = 2**20
OFFLINE = {"HF_HUB_OFFLINE": "1"}
_making = threading.Lock()


def make_once(folder: Path, command: Callable[[Path], Sequence[str]]) -> Path:
    """The folder that a command writes, written whole or not at all, and only if it is not there yet."""
    with _making:  # several servers start at once, and may need the same folder
        if folder.exists():
            return folder
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        made = subprocess.run(command(unfinished), env={**os.environ, **OFFLINE}, capture_output=True, text=True)
        if made.returncode:
            raise RuntimeError(f"{folder.name} could not be made: {made.stderr[-800:]}")
        unfinished.rename(folder)
    return folder


@asynccontextmanager
async def piped_server(*command: str) -> AsyncIterator[tuple[Process, str]]:
    """A program that serves until its standard input ends; gives the first line that it prints."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, limit=LINE_BYTES, env={**os.environ, **OFFLINE}
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), START_SECONDS)).decode().strip()
        if not line:
            raise SystemExit(f"the server did not start: {' '.join(command)}")
        yield process, line
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 30)
        except TimeoutError:
            process.kill()
