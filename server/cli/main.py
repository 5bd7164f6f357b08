"""Runs the chosen subcommand, and turns its failures into one line and an exit status."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from types import ModuleType

from covervlm.server.cli.errors import FAILED, INTERRUPTED, USAGE, CommandError

COMMANDS: Mapping[str, str] = {
    "serve": "serve a model over HTTP",
    "chat": "talk with a model about a picture",
    "prune": "draw which vision tokens a question keeps",
    "classify": "label pictures by names alone, or with a classifier",
    "explain": "tell why a classifier labels a picture as it does",
    "train": "train a classifier, or a space for search, on labelled pictures",
    "cluster": "group pictures by an aspect that you name",
    "stream": "label or group pictures as they come, learning from each",
    "extract": "turn a folder of pictures into a table",
    "tune": "find how few vision tokens do on your own questions",
    "bench": "measure a running server, pruned and unpruned",
    "version": "print the version",
}
"""Each is a module of this package with the functions `add_arguments(parser)` and `run(arguments)`."""

_EPILOG = """exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
Without --url, a command loads a model of its own. Set COVERVLM_BASE_URL to ask a running server every time."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the result is the process's exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="covervlm",
        description="Vision-language models that read only the vision tokens that matter.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"covervlm {version('covervlm')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((word for word in words if word in COMMANDS), None)
    try:
        for name, summary in COMMANDS.items():
            command = commands.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
            if name == chosen:
                command.description = _module(name).__doc__
                _module(name).add_arguments(command)
        parsed, unknown = parser.parse_known_args(words)
        if unknown:
            parser.print_usage(sys.stderr)
            raise CommandError(_unrecognized(unknown, commands.choices[parsed.command]), USAGE)
        _module(parsed.command).run(parsed)
        sys.stdout.flush()
    except CommandError as error:
        print(f"covervlm {chosen}: error: {error}", file=sys.stderr)
        return error.status
    except ModuleNotFoundError as error:
        print(f"covervlm {chosen}: error: {_what_to_install(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the output, e.g. head, has closed it; Python must not complain about that at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _module(command: str) -> ModuleType:
    # Only the chosen one, because what `serve` imports is missing where only the client is installed.
    return import_module(f"covervlm.server.cli.{command}")


def _unrecognized(unknown: Sequence[str], command: argparse.ArgumentParser) -> str:
    """What to tell of arguments that a command does not have: the nearest option, and where all of them are."""
    options = [option for action in command._actions for option in action.option_strings]
    wrong = next((word.partition("=")[0] for word in unknown if word.startswith("-")), "")
    nearest = get_close_matches(wrong, options, 1)
    advice = f"; did you mean {nearest[0]}?" if nearest else "."
    return f"unrecognized arguments: {' '.join(unknown)}{advice} See: {command.prog} --help"


def _what_to_install(error: ModuleNotFoundError) -> str:
    missing = (error.name or "").partition(".")[0]
    if missing == "covervlm":
        raise error
    return f"{missing} is not installed; get it with: pip install 'covervlm[server]'"
