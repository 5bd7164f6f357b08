"""Runs the server in the foreground: port, model, banner, and an orderly end."""

import asyncio
import functools
import gc
import json
import logging
import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from types import FrameType
from typing import Any

import anyio.to_thread
import uvicorn
from fastapi import FastAPI
from prometheus_client import disable_created_metrics

from covervlm.server.api.middleware.admission import Drain
from covervlm.server.app import Application
from covervlm.server.connection import Connection
from covervlm.server.demo import example_scenes
from covervlm.server.engines.registry import StartupError, build_engine
from covervlm.server.limits.hosts import is_loopback
from covervlm.server.settings import Settings, SettingsError, unknown_variables
from covervlm.server.telemetry import logs

log = logging.getLogger(__name__)

_SHORT_WORK = 8
"""Threads for what takes milliseconds and stays off the event loop, such as reading long bodies."""
_FILES = 4
"""Threads in which the framework reads the playground's files."""
_TURN_SECONDS = 0.0005
"""How long a thread that computes in Python keeps others waiting, the event loop among them: it gives up its turn at
each system call, of which a request takes many, so Python's own 5 ms add up."""
_BACKLOG = 128
"""asyncio accepts up to this many connections in a row, and logs as many lines where no file can be opened."""


class Server(uvicorn.Server):
    """uvicorn, with a message for people once requests are answered, and an orderly end.

    SIGTERM first begins the drain: the server is not ready and refuses what is new. After `drain_seconds` it stops
    listening, lets running requests end, and exits with 0. SIGINT, or another SIGTERM, ends the drain at once.
    """

    def __init__(self, config: uvicorn.Config, greet: Callable[[], None], drain: Drain, drain_seconds: float) -> None:
        super().__init__(config)
        self._greet = greet
        self._drain = drain
        self._drain_seconds = drain_seconds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._greet()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """In the main thread, between any two instructions."""
        if sig != signal.SIGTERM or self._drain.begun or not self.started:
            super().handle_exit(sig, frame)
            return
        self._drain.begun = True
        self._loop.call_soon_threadsafe(self._loop.call_later, self._drain_seconds, self._exit)

    def _exit(self) -> None:
        self.should_exit = True


async def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM. Raises SettingsError or StartupError where that cannot begin."""
    sys.setswitchinterval(_TURN_SECONDS)
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(_SHORT_WORK, thread_name_prefix="short-work"))
    anyio.to_thread.current_default_thread_limiter().total_tokens = _FILES
    logs.configure(settings.log_level, settings.log_format, content=settings.log_content)
    for remark in unknown_variables(os.environ):
        log.warning("%s", remark)
    disable_created_metrics()  # a second series beside every counter, which no dashboard reads
    listener = bind(settings)
    engine = build_engine(settings)
    application = Application(settings, engine)
    config = server_config(application.app, settings)
    _load_certificate(config)
    # Last, because it takes longest: whatever else is wrong should be reported before.
    try:
        await application.start()
    except StartupError:
        await engine.stop()
        raise
    if warning := open_to_others(settings):
        log.warning("%s", warning)
    spare_what_is_loaded()
    url, everywhere = address(listener.getsockname(), "https" if config.is_ssl else "http")
    greet = functools.partial(_greet, settings, url, everywhere)
    await Server(config, greet, application.drain, settings.drain_seconds).serve([listener])


def open_to_others(settings: Settings) -> str | None:
    """A remark where other machines reach a server that asks for no key."""
    if settings.key_hashes or is_loopback(settings.host):
        return None
    return (
        f"everybody who reaches {settings.host} may use this server, since it has no keys; give it --api-key or "
        "--api-keys-file, or listen on 127.0.0.1"
    )


def spare_what_is_loaded() -> None:
    """Exclude the objects that exist now from garbage collections.

    Walking half a million objects of models and packages would stop all threads for most of a second.
    """
    gc.collect()
    gc.freeze()


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves the app: HTTP/1.1 alone, TLS where the settings have a certificate."""
    password = settings.ssl_keyfile_password
    return uvicorn.Config(
        app,
        http=functools.partial(  # type: ignore[arg-type]
            Connection, receive_timeout=settings.receive_timeout, send_timeout=settings.send_timeout
        ),
        ws="none",
        backlog=_BACKLOG,
        log_level=settings.log_level,
        server_header=False,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=settings.shutdown_timeout,
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
        ssl_keyfile_password=password.get_secret_value() if password else None,
    )


def _greet(settings: Settings, url: str, everywhere: bool) -> None:
    """Tell people, or where machines read the log, the log."""
    if settings.log_format == "json":
        log.info("covervlm serves %s on %s", settings.model_name, url)
    else:
        print(banner(settings, url, everywhere=everywhere), flush=True)


def banner(settings: Settings, url: str, *, everywhere: bool = False) -> str:
    """What is printed once the server answers: its URL, the page to try it out, and a request to paste.

    everywhere: whether it listens on every address of this machine, of which `url` has one.
    """
    keys = bool(settings.key_hashes)
    key = ", one of the server's keys in its COVERVLM_API_KEY" if keys else ""
    lines = ["", f"covervlm serves {settings.model_name} on {url}"]
    if everywhere:
        lines.append("It listens on every address of this machine; others reach it by its name or one of these.")
    lines.append(f"Try it in a browser: {url}/")
    lines += [f"Ask it about a picture, from another terminal{key}:", ""]
    return "\n".join([*lines, example_request(settings.model_name, url, with_key=keys), ""])


def example_request(model: str, url: str, *, with_key: bool = False) -> str:
    """A shell command that sends an example scene and its question, pruned to 64 vision tokens.

    The server keeps only hashes of its keys, so a key is taken from the environment.
    """
    key = ' -H "Authorization: Bearer $COVERVLM_API_KEY"' if with_key else ""
    scene = example_scenes()[0]
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,PICTURE"}}
    body = {
        "model": model,
        "temperature": 0,
        "vision_pruning": {"keep_tokens": 64},
        "messages": [{"role": "user", "content": [picture, {"type": "text", "text": scene.question}]}],
    }
    before, after = json.dumps(body).split("PICTURE")
    encode = f"base64 < {shlex.quote(str(scene.path))} | tr -d '\\n'"
    return (
        f"{{ printf %s {shlex.quote(before)}; {encode}; printf %s {shlex.quote(after)}; }} |\n"
        f"  curl -s -w '\\n' {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d @-"
    )


def bind(settings: Settings) -> socket.socket:
    """Take the port before the model is loaded: a port in use should be known at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With its protocol, which connections inherit: asyncio sends without delay only where it is TCP by name.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        place = f"{settings.host} port {settings.port}"
        raise StartupError(f"cannot listen on {place}: {error.strerror or error}") from None
    return listener


def _load_certificate(config: uvicorn.Config) -> None:
    try:
        config.load()
    except OSError as error:  # ssl.SSLError among them
        reason = error.strerror or error
        key = f", ssl_keyfile {config.ssl_keyfile}" if config.ssl_keyfile else ""
        raise SettingsError(f"ssl_certfile {config.ssl_certfile}{key}: {reason}") from None


def address(bound: tuple[Any, ...], scheme: str) -> tuple[str, bool]:
    """A URL that this machine can open, and whether the socket is bound to all addresses. bound: of `getsockname`."""
    host, port = bound[:2]
    everywhere = ip_address(host.partition("%")[0]).is_unspecified
    if everywhere:  # no address to connect to, although some systems take it for this machine
        host = "::1" if ":" in host else "127.0.0.1"
    return (f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"), everywhere
