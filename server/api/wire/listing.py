"""OpenAI's lists as responses, written piece by piece in a thread: a long one must not stop the event loop."""

import asyncio
from collections.abc import Callable, Iterable

from fastapi import Response
from pydantic import BaseModel


async def listing(items: Callable[[], Iterable[BaseModel]], whole: BaseModel) -> Response:
    """`whole` with `items` for its `data`; both are made into JSON in a thread."""

    def write() -> bytes:
        pieces = [whole.model_dump_json(exclude={"data"})[:-1].encode(), b',"data":[']
        for item in items():
            pieces += [item.__pydantic_serializer__.to_json(item), b","]
        if pieces[-1] == b",":
            pieces.pop()
        # Copied once: while a long list is copied, all threads wait.
        return b"".join([*pieces, b"]}"])

    return Response(await asyncio.to_thread(write), media_type="application/json")
