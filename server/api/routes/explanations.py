"""/v1/classifiers/NAME/explain: why a classifier answers as it does."""

import asyncio
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from covervlm.server.api.body import BodyRoute
from covervlm.server.api.errors import RESPONSES
from covervlm.server.api.image_inputs import load_images
from covervlm.server.api.wire.examples import vector
from covervlm.server.api.wire.explanations import ExplainRequest, Explanation
from covervlm.server.media.images import ImageLoader

if TYPE_CHECKING:
    from covervlm.server.clip.service import ClipService


def router(service: "ClipService", loader: ImageLoader) -> APIRouter:
    routes = APIRouter(prefix="/v1/classifiers", tags=["classifiers"], responses=RESPONSES, route_class=BodyRoute)

    @routes.post("/{name}/explain", response_model=Explanation)
    async def explain(name: str, body: ExplainRequest, request: Request) -> Response:
        """Why a label: the decision's exact form, the nearest examples, words for it, and what each patch adds."""
        await service.ready()
        caller = request.state.caller
        stored = await service.classifiers.get(caller.owner, name)
        image, row = None, None
        if body.image is not None:
            [image] = await load_images(loader, [body.image], ["image"], caller)
        elif body.embedding is not None:
            row = await asyncio.to_thread(vector, body.embedding, service.dimensions, "embedding")
        told = await service.explanations.explain(
            caller,
            stored.reference,
            image=image,
            row=row,
            **body.model_dump(include={"label", "against", "words", "neighbours", "top"}),
        )
        content = await asyncio.to_thread(lambda: Explanation(classifier=stored.reference, **told).model_dump_json())
        return Response(content, media_type="application/json")

    return routes
