"""The server that is attacked may be that of another checkout: `ATTACKED` in the environment names its folder.

So an attack is seen to harm the commit before its defence. The harness remains today's: what it asks for goes by the
names that the other server knows, and options that it does not know are left out.
"""

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

CHECKOUT = Path(os.environ["ATTACKED"]).resolve() if os.environ.get("ATTACKED") else None

OPTIONS = {"--key-streams": "--key-sessions"}
ROUTES = {
    "/v1/streams": "/v1/zero_shot/sessions",
    "/v1/classify": "/v1/zero_shot/classify",
    "/v1/classifiers": "/v1/zero_shot/classifiers",
    "/v1/embeddings/uploads": "/v1/zero_shot/embeddings",
}
"""Today's names, and those that they had in the first edition."""


def environment(folder: Path) -> dict[str, str]:
    """Of the server's process. folder: where the checkout's folders are linked to as the package `covervlm`."""
    if CHECKOUT is None:
        return dict(os.environ)
    package = folder / "attacked" / "covervlm"
    if not package.exists():
        package.mkdir(parents=True)
        for each in (
            *(CHECKOUT / name for name in ("kernels", "pruners", "server", "clients")),
            *CHECKOUT.glob("library/*.py"),
        ):
            (package / each.name).symlink_to(each)
    return os.environ | {"PYTHONPATH": str(package.parent)}


def known(options: Sequence[str], main: Callable[[list[str]], int]) -> list[str]:
    """Those options, with their values, that `covervlm serve` of this checkout has."""
    if CHECKOUT is None:
        return list(options)
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        main(["serve", "--help"])
    names = set(re.findall(r"--[a-z][a-z-]+", text.getvalue()))
    found, keep = [], True
    for word in options:
        if word.startswith("--"):
            word = word if word in names else OPTIONS.get(word, word)
            keep = word in names
        if keep:
            found.append(word)
    return found


def path(asked: str, paths: Iterable[str]) -> str:
    """The name of a route, or of one below it, that a server with these paths knows it by."""
    for today, earlier in ROUTES.items():
        if earlier in paths and (asked == today or asked.startswith(f"{today}/")):
            return earlier + asked[len(today) :]
    return asked


def as_today(document: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI document with today's names beside those of the server."""
    paths = document["paths"]
    for today, earlier in ROUTES.items():
        found = {name: value for name, value in paths.items() if name == earlier or name.startswith(f"{earlier}/")}
        paths |= {name.replace(earlier, today).replace("{session}", "{stream}"): value for name, value in found.items()}
    return document
