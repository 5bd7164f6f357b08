"""A real server on a loopback port, as `covervlm serve` runs it, in a thread of this process."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from covervlm.server.serving import server_config
from covervlm.server.settings import Settings


class LiveServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.answers = threading.Event()

    async def startup(self, sockets: object = None) -> None:
        await super().startup(sockets)
        self.loop = asyncio.get_running_loop()
        self.answers.set()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return host, port


@contextmanager
def running(app: FastAPI, settings: Settings | None = None) -> Iterator[LiveServer]:
    """Serves `app` until the block ends."""
    config = server_config(app, settings or Settings(log_level="warning"))
    config.port = 0
    server = LiveServer(config)

    def run() -> None:
        try:
            server.run()
        finally:
            server.answers.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        server.answers.wait(60)
        assert server.started, "the server did not start"
        yield server
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server did not stop"


@contextmanager
def live_server(app: FastAPI, settings: Settings | None = None) -> Iterator[str]:
    """Serves `app` until the block ends; gives its URL."""
    with running(app, settings) as server:
        host, port = server.address
        yield f"{'https' if server.config.is_ssl else 'http'}://{host}:{port}"
