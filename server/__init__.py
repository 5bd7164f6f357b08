"""The service: an OpenAI-compatible HTTP API over vision-language models whose vision tokens are pruned."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from covervlm.server.app import create_app

__all__ = ["create_app"]


def __getattr__(name: str) -> Any:
    # Lazy, because the engines and pruners import `covervlm.server` too, and need no web framework.
    if name == "create_app":
        from covervlm.server.app import create_app

        return create_app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
