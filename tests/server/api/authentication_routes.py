"""Every route of an application, whether its schema shows it or not, and those that need no key."""

from collections.abc import Iterator
from typing import Any

OPEN = {"/health", "/ready", "/", "/docs", "/ui/config.json", "/ui/examples/{name}", "/ui/{name}"}


def every_route(app: Any) -> list[tuple[str, str]]:
    """(method, path), of included routers too."""
    return list(_routes(app.router))


def _routes(router: Any) -> Iterator[tuple[str, str]]:
    for route in router.routes:
        included = getattr(route, "original_router", None)
        if included is not None:
            yield from _routes(included)
            continue
        assert type(route).__name__ in ("Route", "APIRoute", "BodyRoute"), f"does {route} need a key?"
        for method in sorted(set(route.methods) - {"HEAD"}):
            yield method, getattr(route, "path_format", route.path)
