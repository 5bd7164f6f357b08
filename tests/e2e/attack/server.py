"""`covervlm serve` on a machine that a test can make worse: names that resolve slowly, a clock that jumps.

/debug/tasks tells how many tasks there are, /debug/clock?seconds=-3600 sets the clock back by an hour.
"""

import asyncio
import socket
import sys
import time
from typing import Any

from covervlm.server import cli, serving
from covervlm.server.app import Application
from tests.e2e.attack.lifeline import end_with_parent

SLOW_NAMES = ".slow.test"
SECONDS = 3.0
"""How long the resolver thinks about a slow name before it knows no address."""

getaddrinfo = socket.getaddrinfo
clock = time.time


def slow(host: Any, *args: Any, **kwargs: Any) -> Any:
    name = host.decode() if isinstance(host, bytes) else str(host)
    if name.rstrip(".").endswith(SLOW_NAMES):
        time.sleep(SECONDS)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return getaddrinfo(host, *args, **kwargs)


class Debugged(Application):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)

        @self.app.get("/debug/tasks")
        async def tasks() -> int:
            return len(asyncio.all_tasks())

        @self.app.get("/debug/clock")
        async def jump(seconds: float) -> float:
            time.time = lambda: clock() + seconds  # type: ignore[assignment]
            return time.time()


if __name__ == "__main__":
    end_with_parent()
    serving.Application = Debugged
    socket.getaddrinfo = slow
    sys.exit(cli.main(["serve", *sys.argv[1:]]))
