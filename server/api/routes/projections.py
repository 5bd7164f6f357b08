"""/v1/projections: spaces for search, learned from examples; each is a model of /v1/embeddings."""

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Request, Response

from covervlm.server.api.body import BodyRoute
from covervlm.server.api.errors import RESPONSES
from covervlm.server.api.learning import learned_from
from covervlm.server.api.openapi import FILE_ANSWER, FILE_BODY, tensors_file
from covervlm.server.api.routes.embeddings import check_model
from covervlm.server.api.routes.jobs import JobStatus, status
from covervlm.server.api.wire.examples import Name
from covervlm.server.api.wire.listing import listing
from covervlm.server.api.wire.methods import OneOf
from covervlm.server.api.wire.projections import ProjectionCard, ProjectionList, ProjectionRequest
from covervlm.server.api.wire.trained import Deleted
from covervlm.server.media.images import ImageLoader
from covervlm.server.store.records import Artifact

if TYPE_CHECKING:
    from covervlm.server.clip.service import ClipService


def router(service: "ClipService", loader: ImageLoader) -> APIRouter:
    routes = APIRouter(prefix="/v1/projections", tags=["projections"], responses=RESPONSES, route_class=BodyRoute)

    def card(entry: Artifact, *, brief: bool = False) -> ProjectionCard:
        return ProjectionCard.of(entry, brief=brief, model=f"{service.name}/{entry.reference}")

    @routes.post("", status_code=202)
    async def train_projection(body: Annotated[ProjectionRequest, OneOf("project")], request: Request) -> JobStatus:
        """Start a job that learns the next version of a projection; GET /v1/jobs/{id} follows it."""
        check_model(body.model, service)
        await service.ready()
        given = await learned_from(body, loader, request.state.caller, service.dimensions)
        return status(await service.projections.fit(request.state.caller, body.name, **given))

    @routes.get("", response_model=ProjectionList)
    async def list_projections(request: Request) -> Response:
        """Every version, oldest first, without their reports."""
        await service.ready()
        entries = await service.projections.all(request.state.caller.owner)
        return await listing(lambda: (card(entry, brief=True) for entry in entries), ProjectionList(data=[]))

    @routes.get("/{name}")
    async def retrieve_projection(name: str, request: Request) -> ProjectionCard:
        """The newest version of a name, or `name@version`."""
        await service.ready()
        return card(await service.projections.get(request.state.caller.owner, name))

    @routes.get("/{name}/file", response_class=Response, responses=FILE_ANSWER)
    async def download_projection(name: str, request: Request) -> Response:
        """The projection as a safetensors file: its matrix, and all else but the report in the metadata."""
        await service.ready()
        return tensors_file(await service.projections.file(request.state.caller.owner, name), f"{name}.safetensors")

    @routes.put("/{name}/file", status_code=201, openapi_extra=FILE_BODY)
    async def upload_projection(name: Name, request: Request) -> ProjectionCard:
        """Keep a projection from a file that this API gave out, as the next version of a name."""
        await service.ready()
        return card(await service.projections.add(request.state.caller.owner, name, await request.body()))

    @routes.delete("/{name}")
    async def delete_projection(name: str, request: Request) -> Deleted:
        """Delete all versions of a name, or with `name@version` that one."""
        await service.ready()
        await service.projections.delete(request.state.caller.owner, name)
        return Deleted(id=name)

    return routes
