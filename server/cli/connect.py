"""Connects a command to the server that it asks: the one at --url, or one of its own that ends with the command."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx

from covervlm.clients import APIConnectionError, APIError, AsyncClient, AuthenticationError, Client, Job
from covervlm.server.cli.errors import USAGE, CommandError

C = TypeVar("C", Client, AsyncClient)
R = TypeVar("R")

_OWN = ("model", "clip_model", "device", "dtype")


def add_server_arguments(parser: argparse.ArgumentParser, *, clip: bool = False) -> None:
    """--url and --api-key, and the options of the model that the command loads itself."""
    group = parser.add_argument_group("server")
    group.add_argument("--url", help="a running server (default: COVERVLM_BASE_URL, if set)")
    group.add_argument("--api-key", metavar="KEY", help="its API key (default: COVERVLM_API_KEY)")
    own = parser.add_argument_group("without --url")
    if clip:
        own.add_argument("--clip-model", metavar="MODEL", help="the built-in 'demo', a local folder, or a hub id")
    own.add_argument("--model", help="the built-in 'demo', a local folder, or a hub id (default: demo)")
    own.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    own.add_argument("--dtype", help="auto, float32, bfloat16 or float16")


def server_url(arguments: argparse.Namespace) -> str | None:
    """The running server to ask; None where the command is to load a model itself."""
    url: str | None = arguments.url or os.environ.get("COVERVLM_BASE_URL")
    return url


@contextmanager
def connect(arguments: argparse.Namespace) -> Iterator[Client]:
    """A client of the server to ask. A failed call ends the command in one line."""
    url = server_url(arguments)
    own = {name: value for name in _OWN if (value := getattr(arguments, name, None)) is not None}
    with call_errors(url):
        if url:
            if own:
                option = "--" + next(iter(own)).replace("_", "-")
                raise CommandError(f"{option} is for a model that the command loads itself; drop it, or --url", USAGE)
            with make_client(Client, arguments, retries=2) as client:
                yield client
            return
        from covervlm.server.cli.own_server import own_server

        if hasattr(arguments, "clip_model"):
            own.setdefault("clip_model", os.environ.get("COVERVLM_CLIP_MODEL", "demo"))
        else:
            own["clip_model"] = "none"

        if sys.stderr.isatty():
            print("loading the model ...", end="\r", file=sys.stderr, flush=True)
        # Without the environment's proxies: the server is this very process.
        with own_server(own) as (address, key), httpx.Client(trust_env=False, timeout=3600) as http:
            if sys.stderr.isatty():
                print(" " * 24, end="\r", file=sys.stderr, flush=True)
            yield Client(address, api_key=key, http_client=http)


def finished(client: Client, job: Job[R]) -> R:
    """The job's result; a command that is interrupted cancels it."""
    try:
        return client.jobs.wait(job, progress=True)
    except KeyboardInterrupt:
        client.jobs.cancel(job)
        raise


def make_client(kind: type[C], arguments: argparse.Namespace, **options: Any) -> C:
    """A client of the server that --url and --api-key, or the environment, name."""
    try:
        return kind(arguments.url, api_key=arguments.api_key, **options)
    except ValueError as error:
        raise CommandError(str(error).replace("base_url", "--url"), USAGE) from None


@contextmanager
def call_errors(url: str | None) -> Iterator[None]:
    """Turns a failed call into a CommandError that says what to do about it."""
    try:
        yield
    except AuthenticationError as error:
        raise CommandError(f"{error} Give it with --api-key or in COVERVLM_API_KEY.") from None
    except APIConnectionError as error:
        advice = "" if error.reached else " Is a server running there? Start one with: covervlm serve"
        raise CommandError(f"{url or 'the server'}: {error}{advice}") from None
    except APIError as error:
        raise CommandError(str(error)) from None
