"""The routes that all named and versioned things have: list, card, file and deletion."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from covervlm.server.api.openapi import FILE_ANSWER, FILE_BODY, tensors_file
from covervlm.server.api.wire.examples import Name
from covervlm.server.api.wire.listing import listing
from covervlm.server.api.wire.trained import Deleted
from covervlm.server.store.records import Artifact

if TYPE_CHECKING:
    from covervlm.server.clip.named import Named


def add_stored(
    routes: APIRouter,
    path: str,
    noun: str,
    stored: Callable[[], Awaitable["Named"]],
    card: Callable[[Artifact, bool], BaseModel],
    one: type[BaseModel],
    many: type[BaseModel],
) -> None:
    """Add them below `path`. stored: the service's, once it is ready. card: of one of them, brief or whole, a `one`.

    many: the list of cards.
    """

    @routes.get(path, response_model=many, name=f"list_{noun}s")
    async def list_all(request: Request) -> Response:
        """Every version, oldest first, without their reports."""
        entries = await (await stored()).all(request.state.caller.owner)
        return await listing(lambda: (card(entry, True) for entry in entries), many(data=[]))

    @routes.get(f"{path}/{{name}}", response_model=one, name=f"retrieve_{noun}")
    async def retrieve(name: str, request: Request) -> Response:
        """The newest version of a name, or `name@version`."""
        entry = await (await stored()).get(request.state.caller.owner, name)
        # A report on thousands of classes takes longer than others should wait.
        written = await asyncio.to_thread(lambda: card(entry, False).model_dump_json())
        return Response(written, media_type="application/json")

    @routes.get(f"{path}/{{name}}/file", response_class=Response, responses=FILE_ANSWER, name=f"download_{noun}")
    async def download(name: str, request: Request) -> Response:
        """It as a safetensors file: tensors, and everything else in the metadata."""
        return tensors_file(await (await stored()).file(request.state.caller.owner, name), f"{name}.safetensors")

    @routes.put(
        f"{path}/{{name}}/file", status_code=201, openapi_extra=FILE_BODY, response_model=one, name=f"upload_{noun}"
    )
    async def upload(name: Name, request: Request) -> BaseModel:
        """Keep what this API gave out as a file, as the next version of a name."""
        return card(await (await stored()).add(request.state.caller.owner, name, await request.body()), False)

    @routes.delete(f"{path}/{{name}}", name=f"delete_{noun}")
    async def delete(name: str, request: Request) -> Deleted:
        """Delete all versions of a name, or with `name@version` that one."""
        await (await stored()).delete(request.state.caller.owner, name)
        return Deleted(id=name)
