"""Arguments that several commands take, checked before anything is loaded."""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from covervlm.clients import BadRequestError, OverloadedError, PayloadTooLargeError, ResponseFormatError, ServerError
from covervlm.server.cli.errors import USAGE, CommandError, file_errors

T = TypeVar("T")

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"})
"""Of a folder, the files with these endings are taken as pictures."""


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
    """Names separated by commas, or @FILE for the lines of a file."""
    if text.startswith("@"):
        try:
            parts = Path(text[1:]).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise argparse.ArgumentTypeError(f"{text[1:]} cannot be read: {error}") from None
    else:
        parts = text.split(",")
    return [part.strip() for part in parts if part.strip()]


def parameter(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as in JSON."""
    name, _, value = text.partition("=")
    return name, json.loads(value)


def add_parameters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", nargs="*", action="extend", type=parameter, metavar="NAME=VALUE", help="parameters of the method"
    )


def check_folder(file: Path | None) -> None:
    """Raises CommandError for a file that could not be written in the end, since its folder does not exist."""
    if file is not None and not file.parent.is_dir():
        raise CommandError(f"{file}: there is no folder {file.parent}", USAGE)


def schema_file(text: str) -> dict[str, Any]:
    """A file that holds a JSON schema."""
    try:
        read = json.loads(Path(text).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be read as JSON: {error}") from None
    if not isinstance(read, dict):
        raise argparse.ArgumentTypeError(f"{text} holds no JSON schema, which is an object")
    return read


def add_budget(parser: argparse.ArgumentParser, *, default: str) -> None:
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--keep", "--keep-tokens", type=count, metavar="N", help=f"vision tokens to keep of a picture ({default})"
    )
    budget.add_argument("--keep-ratio", type=share, metavar="SHARE", help="share of the vision tokens to keep, up to 1")
    budget.add_argument("--coverage", type=share, metavar="SHARE", help="keep the fewest tokens that cover this share")
    parser.add_argument("--method", help="pruning method (default: the server's, mmtok); a wrong one gets the list")


def budget_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The budget as options of the client's calls."""
    return {
        "keep_tokens": arguments.keep,
        "keep_ratio": arguments.keep_ratio,
        "coverage": arguments.coverage,
        "method": arguments.method,
    }


def pictures(places: Iterable[Path]) -> list[Path]:
    """The given files, and the pictures in the given folders, each folder's sorted by path.

    Raises CommandError for a path that does not exist, and where there is no picture at all.
    """
    found = [path for place in places for path in _pictures(place)]
    if not found:
        raise CommandError(f"no pictures found; folders are searched for {', '.join(sorted(SUFFIXES))}", USAGE)
    return found


def _pictures(place: Path) -> Iterator[Path]:
    if place.is_dir():
        yield from sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    elif place.is_file():
        yield place
    else:
        raise CommandError(f"{place}: No such file or directory")


def read_file(path: Path) -> bytes:
    with file_errors(path):
        return path.read_bytes()


class Taken:
    """Asks about pictures, but not about those that cannot be read or are refused, which it lists at the end."""

    def __init__(self) -> None:
        self._skipped: dict[Path | str, str] = {}

    def ask(self, paths: Sequence[Path], call: Callable[[list[Path]], T], *, fewest: int = 1) -> tuple[list[Path], T]:
        """The pictures that were taken, and what `call` answered about them. Raises CommandError for any other refusal,
        and where fewer than `fewest` are left.
        """
        left = list(paths)
        while len(left) >= fewest:
            try:
                return left, call(left)
            except BadRequestError as error:
                place = re.match(r"images\[(\d+)\]|examples\[(\d+)\]\.image", error.param or "")
                number = int(place[1] or place[2]) if place else len(left)
                if number >= len(left):
                    raise CommandError(str(error)) from None
                self._skipped[left.pop(number)] = str(error)
            except OSError as error:
                broken = next((path for path in left if str(path) == str(error.filename)), None)
                if broken is None:
                    raise
                left.remove(broken)
                self._skipped[broken] = error.strerror or str(error)
        self.end()
        raise CommandError(f"too few pictures: {len(left)} can be used, and at least {fewest} are needed", USAGE)

    @contextmanager
    def unless(self, path: Path | str) -> Iterator[None]:
        """Does without a picture where a chat about it fails because of itself or of its answer.

        Raises CommandError for a request that would be refused for any picture.
        """
        try:
            yield
        except OverloadedError:
            raise
        # A ValueError is of a picture that cannot be fetched, of its path, or of a text that cannot be sent.
        except (BadRequestError, PayloadTooLargeError, ServerError, ResponseFormatError, OSError, ValueError) as error:
            if isinstance(error, BadRequestError) and not (error.param or "messages").startswith("messages"):
                raise CommandError(str(error)) from None
            self._skipped[path] = getattr(error, "strerror", None) or str(error)

    def end(self) -> None:
        """Lists what was left out, which makes the command a failure. Raises CommandError."""
        for path, reason in self._skipped.items():
            print(f"{path}: {reason}", file=sys.stderr)
        if self._skipped:
            raise CommandError(f"{len(self._skipped)} of the pictures could not be used")
