"""Which Host headers the server answers to: the guard against DNS rebinding by web pages."""

from collections.abc import Sequence
from ipaddress import ip_address

ANY = "*"


class Hosts:
    """The names that requests may use for the server.

    allowed: names without ports; "*" allows all. local: whether the server listens on loopback alone; if it does, and
    nothing is allowed explicitly, only this machine's own names are.
    """

    def __init__(self, allowed: Sequence[str], *, local: bool) -> None:
        self._allowed = frozenset(name.lower() for name in allowed)
        self._local = local

    def allow(self, host: str, arrived_at: str) -> bool:
        """Whether a request may name `host` in its Host header; `arrived_at` is the address that it came to."""
        name = host.lower().rsplit(":", 1)[0] if not host.endswith("]") else host.lower()
        if self._allowed:
            return ANY in self._allowed or name in self._allowed
        return not self._local or not is_loopback(arrived_at) or is_loopback(name)


def is_loopback(name: str) -> bool:
    """Whether a host's name or address is one of this machine alone."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
