"""A real uvicorn server on a loopback port, in a thread of this process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.answers = threading.Event()

    async def startup(self, sockets: object = None) -> None:
        await super().startup(sockets)
        self.answers.set()


@contextmanager
def live_server(app: FastAPI) -> Iterator[str]:
    """Serves `app` until the block ends; gives its URL."""
    server = _Server(uvicorn.Config(app, port=0, log_level="warning"))

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
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server did not stop"
