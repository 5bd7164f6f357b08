"""A request's body in JSON: bounded, checked off the event loop, and worked on for as long as the client waits."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Annotated, Any

import numpy as np
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response

from covervlm.server.api.errors import InvalidBody, failure, parameter_name, validation_failure
from covervlm.server.api.exchange import unless_disconnected
from covervlm.server.core.caller import ANONYMOUS, Caller
from covervlm.server.core.fairness import FairTurns
from covervlm.server.core.parsing import SMALL, takes_too_long

LARGE_BODY = SMALL
"""Bytes from which on a body is parsed and checked in a thread, so that others are answered meanwhile."""
MOST_FAULTS = 100
LONGEST_PARSE = 0.15
"""Seconds of parsing allowed beyond plain text."""
_DEEPEST, _MOST_TOKENS, _LOOKED_AT = 200, 10_000, 2**22
_MOST_MARKS = 100_000
_PIECE = 2**16
_IS_MARK = np.zeros(256, bool)
_IS_MARK[list(b'[]{}:,"')] = True

# One large body at a time: even in a thread, parsing keeps all other threads waiting, the event loop's among them.
_turns = FairTurns(1)


class BodyRoute(APIRoute):
    """A route whose body is read whole and checked, and whose work is cancelled once the client has gone."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle, field = super().get_route_handler(), self.body_field
        if not set(self.methods or ()) & {"POST", "PUT"}:
            return handle
        adapter: TypeAdapter[Any] | None = None
        if field is not None:
            body_type: Any = Annotated[field.field_info.annotation, field.field_info]
            adapter = TypeAdapter(body_type)

        class CheckedRequest(Request):
            async def body(self) -> bytes:
                if not hasattr(self, "_body"):
                    pieces = [piece async for piece in self.stream()]
                    large = sum(map(len, pieces)) >= LARGE_BODY
                    self._body = await asyncio.to_thread(b"".join, pieces) if large else b"".join(pieces)
                return self._body

            async def json(self) -> Any:
                body = await self.body()
                if len(body) < LARGE_BODY:
                    return checked(body, adapter)
                caller = getattr(self.state, "caller", None)
                async with _turns.turn(caller.owner if isinstance(caller, Caller) else ANONYMOUS):
                    return await asyncio.to_thread(checked, body, adapter)

        async def handle_checked(request: Request) -> Response:
            own = CheckedRequest(request.scope, request.receive)
            await own.body()
            return await unless_disconnected(own, handle(own))

        return handle_checked


def checked(body: bytes, adapter: TypeAdapter[Any] | None) -> Any:
    """The body as its model, or plain where there is none. Raises InvalidBody."""
    if takes_too_long(body, LONGEST_PARSE):
        message = (
            "The body holds more values (100,000), escapes, blanks or long strings with escapes than this server "
            "parses; send fewer of them."
        )
        raise InvalidBody(failure(400, message, param=_fullest_place(body), code="invalid_json"))
    try:
        value = from_json(body)
    except ValueError as error:
        deep = str(error).startswith("recursion")
        depth = f"The body nests too deeply; send at most {_DEEPEST} levels of objects and lists."
        half = "; \\ud800 to \\udfff are halves of a character and come in pairs" if "hex escape" in str(error) else ""
        message = depth if deep else f"The body is not valid JSON: {error}{half}."
        place = _fullest_place(body) if deep else None
        raise InvalidBody(failure(400, message, param=place, code="invalid_json")) from None
    try:
        return value if adapter is None else adapter.validate_python(value)
    except ValidationError as error:
        if error.error_count() > MOST_FAULTS:
            message = f"The body has {error.error_count()} unknown or invalid parameters; check its format."
            raise InvalidBody(failure(400, message, code="invalid_value")) from None
        first = error.errors(include_url=False)[0]
        raise InvalidBody(validation_failure({**first, "loc": ("body", *first["loc"])})) from None


def _fullest_place(body: bytes) -> str | None:
    """The field where a body nests too deeply or has held a great many values, as far down as fields of ours go."""
    place: list[str | int] = []
    name = b""
    for number, (mark, text) in enumerate(_structure(body)):
        match mark:
            case "{":
                place.append("")
            case "[":
                place.append(0)
            case "}" | "]" if place:
                place.pop()
            case '"':
                name = text
            case ":" if place:
                place[-1] = name.decode(errors="replace")
            case "," if place and isinstance(place[-1], int):
                place[-1] += 1
        if len(place) > _DEEPEST or number > _MOST_TOKENS:
            return parameter_name(place[:4]) if place and isinstance(place[0], str) else None
    return None


def _structure(body: bytes) -> Iterator[tuple[str, bytes]]:
    """Brackets, colons and commas of JSON, and its strings by their quotes, with their first characters.

    Found by numpy, piece by piece: a regular expression keeps all threads waiting for as long as it looks at digits.
    """
    looked_at, begin, last, marks = np.frombuffer(body, np.uint8, min(len(body), _LOOKED_AT)), -1, -1, 0
    for start in range(0, len(looked_at), _PIECE):
        for at in (start + np.flatnonzero(_IS_MARK.take(looked_at[start : start + _PIECE]))).tolist():
            marks += 1
            if marks > _MOST_MARKS:
                return
            mark = chr(body[at])
            if begin < 0 and mark != '"':
                yield mark, b""
            elif begin < 0:
                begin = last = at
            elif mark == '"':
                # A quote behind an odd number of backslashes, none of which an earlier quote has seen, is escaped.
                since = body[last + 1 : at]
                last = at
                if (len(since) - len(since.rstrip(b"\\"))) % 2 == 0:
                    yield mark, body[begin + 1 : min(at, begin + 101)]
                    begin = -1
