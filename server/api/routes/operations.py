"""Operations: is the process alive, is it ready, which version is it, what does it measure."""

import asyncio
from importlib.metadata import version
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel

from covervlm.server.api.errors import RESPONSES, failure
from covervlm.server.api.openapi import TEXT_ANSWER
from covervlm.server.core.engine import Engine
from covervlm.server.telemetry.metrics import Metrics


class Status(BaseModel):
    status: Literal["ok", "ready"]


class Version(BaseModel):
    version: str
    engine: str


def router(engine: Engine, metrics: Metrics) -> APIRouter:
    routes = APIRouter(tags=["operations"], responses=RESPONSES)

    @routes.get("/health")
    async def health() -> Status:
        """The process answers; says nothing about the model."""
        return Status(status="ok")

    @routes.get("/ready", response_model=Status)
    async def ready() -> Response | Status:
        """The model would take a request now; 503 while it loads, stops, or after it failed."""
        if not engine.ready:
            return failure(503, "The model is not ready.", code="engine_unavailable").response()
        return Status(status="ready")

    @routes.get("/version")
    async def show_version() -> Version:
        return Version(version=version("covervlm"), engine=engine.info.engine)

    @routes.get("/metrics", response_class=Response, responses=TEXT_ANSWER)
    async def show_metrics(request: Request) -> Response:
        """Prometheus text, or OpenMetrics where the client asks for it."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        # In a thread: some figures come from the disk.
        return Response(await asyncio.to_thread(encode, metrics.registry), media_type=content_type)

    return routes
