"""Every attack, by what it aims at; importing a module enters its attacks into the table."""

from tests.e2e.attack.attacks import (
    browsers,
    clips,
    connections,
    fetching,
    files,
    jobs,
    leaving,
    machine,
    numbers,
    pictures,
    store,
    text,
    validation,
)
from tests.e2e.attack.registry import TABLE

__all__ = [
    "TABLE",
    "browsers",
    "clips",
    "connections",
    "fetching",
    "files",
    "jobs",
    "leaving",
    "machine",
    "numbers",
    "pictures",
    "store",
    "text",
    "validation",
]
