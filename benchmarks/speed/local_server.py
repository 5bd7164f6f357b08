"""A `covervlm serve` process on a free loopback port, so that client and server do not share an interpreter."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 300


@contextmanager
def local_server(
    options: Sequence[str] = (), python: Path = Path(sys.executable), environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Starts the server with the options of `covervlm serve`; gives its URL, ends it with the block.

    python: the interpreter of the environment that holds the server, by default this one.
    """
    command = [str(python.with_name("covervlm")), "serve", "--port", "0", "--log-level", "warning"]
    process = subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    overdue = threading.Timer(START_SECONDS, process.kill)
    overdue.start()
    try:
        assert process.stdout is not None
        served = (line for line in process.stdout if line.startswith("covervlm serves "))
        url = next(served, "").rpartition(" ")[2].strip()
        if not url:
            raise SystemExit(f"the server did not start: {' '.join([*command, *options])}")
        overdue.cancel()
        yield url
    finally:
        overdue.cancel()
        process.terminate()
        process.wait(60)
