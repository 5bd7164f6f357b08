"""`covervlm serve` on a machine that a test can make worse: names that resolve slowly, a clock that jumps.

/debug/tasks tells how many tasks there are, /debug/clock?seconds=-3600 sets the clock back by an hour.
"""

import asyncio
import functools
import socket
import sys
import time
from typing import Any

import fastapi
from fastapi import FastAPI

from tests.e2e.attack import attacked
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


class Debugged(FastAPI):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)

        @self.get("/debug/tasks")
        async def tasks() -> int:
            return len(asyncio.all_tasks())

        @self.get("/debug/clock")
        async def jump(seconds: float) -> float:
            time.time = lambda: clock() + seconds  # type: ignore[assignment]
            return time.time()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if attacked.CHECKOUT and scope["type"] == "http":
            scope["path"] = attacked.path(scope["path"], self.paths)
        await super().__call__(scope, receive, send)

    @functools.cached_property
    def paths(self) -> set[str]:
        return set(self.openapi()["paths"])


if __name__ == "__main__":
    end_with_parent()
    socket.getaddrinfo = slow
    fastapi.FastAPI = Debugged  # type: ignore[misc]
    from covervlm.server.cli import main  # builds its application from that

    sys.exit(main(["serve", *attacked.known(sys.argv[1:], main)]))
