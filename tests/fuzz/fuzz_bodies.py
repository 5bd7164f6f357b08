"""Bodies in JSON, one pattern repeated to megabytes: what is taken is read and checked, or refused, in no time.

NULs stand between a route's path, the body's beginning, what is repeated, and its end; the last two may be missing.
"""

import json
from typing import Annotated, Any

from pydantic import TypeAdapter

from covervlm.server import create_app
from covervlm.server.api.body import BodyRoute, checked
from covervlm.server.api.errors import InvalidBody
from covervlm.server.settings import Settings
from tests.server.api.scripted import ScriptedEngine

TRACED = ("covervlm.server.api",)
LONG = 4 * 2**20


def adapters() -> dict[bytes, TypeAdapter[Any]]:
    """Of every route with a body, as `BodyRoute` makes them."""
    routes = create_app(Settings(), ScriptedEngine()).routes
    fields = {route.path: route.body_field for route in routes if isinstance(route, BodyRoute) and route.body_field}
    return {
        path.encode(): TypeAdapter(Annotated[field.field_info.annotation, field.field_info])
        for path, field in fields.items()
    }


ADAPTERS = adapters()


def target(data: bytes) -> None:
    path, begin, repeated, end = (data.split(b"\0", 3) + [b""] * 3)[:4]
    if path not in ADAPTERS:
        return
    try:
        value = checked(begin + repeated * (LONG // max(1, len(repeated))) + end, ADAPTERS[path])
    except InvalidBody as refused:
        assert 400 <= refused.failure.status < 500
        json.dumps(refused.failure.body, ensure_ascii=False).encode()
        assert len(refused.failure.detail.message) < 1000
    else:
        assert repeated or ADAPTERS[path].dump_json(value, warnings="none")
