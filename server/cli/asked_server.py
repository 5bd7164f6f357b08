"""The server that a command asks: the one at --url, or one of its own that lives as long as the command."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from covervlm.clients import APIConnectionError, APIError, AuthenticationError, Client
from covervlm.server.cli.problems import USAGE, CommandError

_OWN = ("model", "clip_model", "device", "dtype")


def add_server_arguments(parser: argparse.ArgumentParser, *, clip: bool = False) -> None:
    """--url and --api-key, and what a server of the command's own is to load."""
    group = parser.add_argument_group("server")
    group.add_argument("--url", help="a running server (default: COVERVLM_BASE_URL, if set)")
    group.add_argument("--api-key", metavar="KEY", help="its key (default: COVERVLM_API_KEY)")
    own = parser.add_argument_group("without --url")
    if clip:
        own.add_argument("--clip-model", metavar="MODEL", help="the built-in 'demo', a local folder, or a hub id")
    own.add_argument("--model", help="the built-in 'demo', a local folder, or a hub id (default: demo)")
    own.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    own.add_argument("--dtype", help="auto, float32, bfloat16 or float16")


@contextmanager
def asked_server(arguments: argparse.Namespace) -> Iterator[Client]:
    """A client of the server to ask. Failures of calls end the command in one line."""
    url = arguments.url or os.environ.get("COVERVLM_BASE_URL")
    own = {name: value for name in _OWN if (value := getattr(arguments, name, None)) is not None}
    try:
        if url:
            if own:
                option = "--" + next(iter(own)).replace("_", "-")
                raise CommandError(f"{option} is for a model that the command loads itself, not for --url", USAGE)
            with _client(url, arguments.api_key) as client:
                yield client
            return
        from covervlm.server.cli.own_server import own_server

        if hasattr(arguments, "clip_model"):
            own.setdefault("clip_model", os.environ.get("COVERVLM_CLIP_MODEL", "demo"))
        else:
            own["clip_model"] = "none"

        if sys.stderr.isatty():
            print("loading the model ...", end="\r", file=sys.stderr, flush=True)
        # No proxy of the environment's stands between a process and itself.
        with own_server(own) as (address, key), httpx.Client(trust_env=False, timeout=3600) as http:
            if sys.stderr.isatty():
                print(" " * 24, end="\r", file=sys.stderr, flush=True)
            yield Client(address, api_key=key, http_client=http)
    except AuthenticationError as error:
        raise CommandError(f"{error} Give it with --api-key or in COVERVLM_API_KEY.") from None
    except APIConnectionError as error:
        raise CommandError(unreachable(url, error)) from None
    except APIError as error:
        raise CommandError(str(error)) from None


def unreachable(url: str | None, error: APIConnectionError) -> str:
    """What to say of a server that does not answer."""
    advice = "" if error.reached else " Is a server running there? Start one with: covervlm serve"
    return f"{url or 'the server'}: {error}{advice}"


def _client(url: str, key: str | None) -> Client:
    try:
        return Client(url, api_key=key, retries=2)
    except ValueError as error:
        raise CommandError(str(error).replace("base_url", "--url"), USAGE) from None
