"""Whose request it is: everything that the server keeps belongs to an owner, and nobody else sees it."""

from fastapi import Request

from covervlm.server.store.records import ANONYMOUS


def owner(request: Request) -> str:
    """Set by authentication on the request's state; without API keys, all callers are one owner."""
    return getattr(request.state, "owner", ANONYMOUS)
