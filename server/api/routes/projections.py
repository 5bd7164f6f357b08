"""/v1/projections: spaces for search, learned from examples; each is a model of /v1/embeddings."""

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Request

from covervlm.server.api.body import BodyRoute
from covervlm.server.api.errors import RESPONSES
from covervlm.server.api.learning import learned_from
from covervlm.server.api.routes.embeddings import check_model
from covervlm.server.api.routes.jobs import JobStatus, status
from covervlm.server.api.routes.stored import add_stored
from covervlm.server.api.wire.methods import OneOf
from covervlm.server.api.wire.projections import ProjectionCard, ProjectionList, ProjectionRequest
from covervlm.server.media.images import ImageLoader
from covervlm.server.store.records import Artifact

if TYPE_CHECKING:
    from covervlm.server.clip.named import Named
    from covervlm.server.clip.service import ClipService


def router(service: "ClipService", loader: ImageLoader) -> APIRouter:
    routes = APIRouter(prefix="/v1/projections", tags=["projections"], responses=RESPONSES, route_class=BodyRoute)

    @routes.post("", status_code=202)
    async def train_projection(body: Annotated[ProjectionRequest, OneOf("project")], request: Request) -> JobStatus:
        """Start a job that learns the next version of a projection; GET /v1/jobs/{id} follows it."""
        check_model(body.model, service)
        await service.ready()
        given = await learned_from(body, loader, request.state.caller, service.dimensions)
        return status(await service.projections.fit(request.state.caller, body.name, **given))

    async def stored() -> "Named":
        await service.ready()
        return service.projections

    def card(entry: Artifact, brief: bool) -> ProjectionCard:
        return ProjectionCard.of(entry, brief=brief, model=f"{service.name}/{entry.reference}")

    add_stored(routes, "", "projection", stored, card, ProjectionCard, ProjectionList)
    return routes
