"""A server inside the command's own process, on a free loopback port; its random API key keeps everybody else out."""

import asyncio
import logging
import os
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager

import uvicorn

from covervlm.server.cli.errors import startup_errors
from covervlm.server.engines.registry import StartupError, build_engine
from covervlm.server.settings import Settings, unknown_variables

_FIXED = {
    "api_keys_file": None,
    "ssl_certfile": None,
    "ssl_keyfile": None,
    "log_level": "error",
    "max_body_bytes": 1024**3,
    "request_timeout": 86_400.0,
    "shutdown_timeout": 5,
}
"""They override the environment: limits that protect a shared server only get in a single user's way."""


@contextmanager
def own_server(options: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Serves until the block ends; gives the URL and the key. The environment's COVERVLM_* settings apply too.

    Raises CommandError where the settings are wrong or the model cannot be loaded.
    """
    for remark in unknown_variables(os.environ):
        print(f"covervlm: {remark}", file=sys.stderr)
    key = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="covervlm-") as folder:
        with startup_errors():
            settings = Settings(**{**options, **_FIXED, "api_key": (key,), "data_dir": folder})  # type: ignore[arg-type]
        logging.getLogger("covervlm").setLevel(logging.ERROR)
        if not sys.stderr.isatty():
            from transformers.utils.logging import disable_progress_bar

            disable_progress_bar()
        server = _Server(settings)
        server.start()
        try:
            with startup_errors():
                port = server.port()
            yield f"http://127.0.0.1:{port}", key
        finally:
            server.stop()


class _Server(threading.Thread):
    """Loads the model and serves it on an event loop of its own."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="server", daemon=True)
        self._settings = settings
        self._port: Future[int] = Future()
        self._server: uvicorn.Server | None = None

    def port(self) -> int:
        """Waits until requests are answered. Raises SettingsError or StartupError where that fails."""
        return self._port.result()

    def stop(self) -> None:
        if self._server is not None:
            self._server.should_exit = True
            self.join()

    def run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if not self._port.done():
                self._port.set_exception(error)

    async def _serve(self) -> None:
        from covervlm.server.app import Application
        from covervlm.server.serving import server_config

        engine = build_engine(self._settings)
        application = Application(self._settings, engine)
        try:
            await application.start()
        except StartupError:
            await engine.stop()
            raise
        self._server = server = uvicorn.Server(server_config(application.app, self._settings))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.ensure_future(server.serve([listener]))
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            if not server.started:
                raise StartupError("the server did not start; `covervlm serve` with the same options shows why")
            self._port.set_result(listener.getsockname()[1])
            await serving
