"""The table of attacks: what is sent, what may come back, and on what kind of server."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.attack.attacker import Attacker

Send = Callable[[Attacker], Awaitable[None]]
REFUSED = frozenset({400, 413, 422, 429, 503})
"""What a request that asks too much may get; a 503 says when to come again."""


@dataclass(frozen=True)
class Attack:
    """One line of the table.

    answers: statuses that its requests may get; 0 stands for a connection that ended without an answer.
    once: it is not sent again and again until the window is over. limit: seconds after which it is cut short.
    options: the server has these besides the usual ones. wrapper: a command that starts it, and no other attack uses it
    then. prepare: called with the data folder before that.
    kept: /health is asked over one connection, because new ones cannot be had.
    make: builds what is sent, before the clock starts. needs: what this machine lacks for it, None for nothing.
    """

    name: str
    send: Send
    answers: frozenset[int] = REFUSED
    once: bool = False
    limit: float = 12.0
    options: Sequence[str] = ()
    wrapper: Callable[[Path], Sequence[str]] | None = None
    prepare: Callable[[Path], None] | None = None
    kept: bool = False
    make: Callable[[], object] = field(default=lambda: None)
    needs: Callable[[], str | None] = field(default=lambda: None)

    @property
    def server(self) -> tuple[object, ...]:
        """Attacks for which this is the same use one server, one after another."""
        return tuple(self.options), self.prepare, self.name if self.wrapper else None


TABLE: dict[str, Attack] = {}


def attack(name: str, **fields: object) -> Callable[[Send], Send]:
    """Enter a function into the table under a name that says what is sent."""

    def enter(send: Send) -> Send:
        assert name not in TABLE, name
        TABLE[name] = Attack(name, send, **fields)  # type: ignore[arg-type]
        return send

    return enter
