"""All routes of the CLIP model: embeddings, zero-shot labels and classifiers, sessions, clusterings, and their jobs."""

from typing import TYPE_CHECKING

from fastapi import APIRouter

from covervlm.server.api import clustering, embeddings, jobs, zero_shot, zero_shot_sessions
from covervlm.server.clip.words import WordSource
from covervlm.server.media.images import ImageLoader

if TYPE_CHECKING:
    from covervlm.server.clip.service import ClipService


def router(service: "ClipService", loader: ImageLoader, words: WordSource) -> APIRouter:
    routes = APIRouter()
    routes.include_router(embeddings.router(service, loader))
    routes.include_router(zero_shot.router(service, loader))
    routes.include_router(zero_shot_sessions.router(service, loader))
    routes.include_router(clustering.router(service, loader, words))
    routes.include_router(jobs.router(service))
    return routes
