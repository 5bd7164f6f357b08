"""All routes of the CLIP model: embeddings, classifiers, projections, streams, clusterings, and their jobs."""

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request

from covervlm.server.api.routes import classifiers, clusterings, embeddings, explanations, jobs, projections, streams
from covervlm.server.asking.asker import Asker
from covervlm.server.core.errors import ResourceError
from covervlm.server.media.images import ImageLoader

if TYPE_CHECKING:
    from covervlm.server.clip.service import ClipService

PLACES = (
    "/v1/embeddings",
    "/v1/classify",
    "/v1/classifiers",
    "/v1/projections",
    "/v1/streams",
    "/v1/clusterings",
    "/v1/jobs",
)
"""Every path of these routes is one of these or below one."""


class NoClipModel(ResourceError):
    """No CLIP model is served. Not a 5xx, which clients would retry."""

    status = 404


def routers(service: "ClipService", loader: ImageLoader, ask: Asker) -> list[APIRouter]:
    loader = loader.within(service.check_image)
    return [
        embeddings.router(service, loader),
        classifiers.router(service, loader),
        explanations.router(service, loader),
        projections.router(service, loader),
        streams.router(service, loader),
        clusterings.router(service, loader, ask),
        jobs.router(service),
    ]


def absent() -> APIRouter:
    """The same paths where no CLIP model is served: their error says what turns them on."""
    routes = APIRouter(include_in_schema=False)

    async def refuse(request: Request) -> None:
        raise NoClipModel(
            f"{request.url.path[:200]} needs a CLIP model, and this server was started without one; start it with "
            "--clip-model and a folder, a hub id, or demo.",
            code="no_clip_model",
        )

    for place in PLACES:
        for path in (place, place + "/{rest:path}"):
            routes.add_api_route(path, refuse, methods=["GET", "POST", "PUT", "DELETE"])
    return routes
