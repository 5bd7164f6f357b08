"""Arguments that several commands take, checked before anything is loaded."""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from covervlm.clients import BadRequestError
from covervlm.server.cli.problems import USAGE, CommandError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"})
"""What is taken for a picture in a folder."""


def count(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def share(text: str) -> float:
    """A number above 0, up to 1."""
    number = float(text)
    if not 0 < number <= 1:
        raise ValueError
    return number


def names(text: str) -> list[str]:
    """Words with commas between them, or the lines of a file: @FILE."""
    if text.startswith("@"):
        try:
            parts = Path(text[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise argparse.ArgumentTypeError(f"{text[1:]} cannot be read: {error}") from None
    else:
        parts = text.split(",")
    return [part.strip() for part in parts if part.strip()]


def add_budget(parser: argparse.ArgumentParser, *, default: str) -> None:
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--keep", type=count, metavar="N", help=f"vision tokens to keep of a picture ({default})")
    budget.add_argument("--keep-ratio", type=share, metavar="SHARE", help="share of the vision tokens to keep")
    budget.add_argument("--coverage", type=share, metavar="SHARE", help="keep as few as reach this share of coverage")
    parser.add_argument("--method", help="pruning method (default: mmtok)")


def budget_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the client's calls that the budget's arguments stand for."""
    return {
        "keep_tokens": arguments.keep,
        "keep_ratio": arguments.keep_ratio,
        "coverage": arguments.coverage,
        "method": arguments.method,
    }


def pictures(places: Iterable[Path]) -> list[Path]:
    """The files among them, and the pictures in the folders among them, in order of their names.

    Raises CommandError for a place that there is not, and where there is no picture at all.
    """
    found = [path for place in places for path in _pictures(place)]
    if not found:
        raise CommandError(f"there are no pictures here; what counts: {', '.join(sorted(SUFFIXES))}", USAGE)
    return found


def _pictures(place: Path) -> Iterator[Path]:
    if place.is_dir():
        yield from sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    elif place.is_file():
        yield place
    else:
        raise CommandError(f"{place}: No such file or directory")


def blame(error: BadRequestError, paths: list[Path]) -> CommandError:
    """The refusal, with the file in place of e.g. images[3]."""
    place = (error.param or "").removeprefix("images[").partition("]")[0]
    if place.isdigit() and int(place) < len(paths):
        return CommandError(f"{paths[int(place)]}: {error}")
    return CommandError(str(error))
