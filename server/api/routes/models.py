"""GET /v1/models: the served model, its names that carry a budget, such as demo:64, and those that embed."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from covervlm.server.api.errors import RESPONSES
from covervlm.server.api.preparation import ChatDefaults, budget_in_name
from covervlm.server.api.routes.embeddings import projection_of
from covervlm.server.core.engine import Engine
from covervlm.server.store.records import Artifact

if TYPE_CHECKING:
    from covervlm.server.clip.service import ClipService


class ModelCard(BaseModel):
    """A model in OpenAI's terms and vLLM's (`root`, `max_model_len`), and its vision tokens per image.

    `vision_tokens` is null where it depends on the image. `method`, and `keep_tokens` or `keep_ratio`, are what a
    request gets that has no budget of its own; both are null where nothing is pruned then, or where `adaptive_budget`,
    the least and the most tokens, follows the load. Models that embed have none of these.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "covervlm"
    root: str
    max_model_len: int | None = None
    vision_tokens: int | None = None
    method: str | None = None
    keep_tokens: int | None = None
    keep_ratio: float | None = None
    adaptive_budget: tuple[int, int] | None = None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


def router(
    engine: Engine,
    defaults: ChatDefaults,
    budget_aliases: Sequence[int],
    adaptive: tuple[int, int] | None = None,
    clip: "ClipService | None" = None,
) -> APIRouter:
    routes = APIRouter(tags=["models"], responses=RESPONSES)
    created = int(time.time())
    served, policy = defaults.model, defaults.policy

    def card(name: str, budget: int | None) -> ModelCard:
        return ModelCard(
            id=name,
            created=created,
            root=served,
            max_model_len=engine.info.context_length,
            vision_tokens=engine.info.vision_tokens,
            method=policy.method,
            keep_tokens=budget or (policy.keep_tokens if isinstance(policy.keep_tokens, int) else None),
            keep_ratio=None if budget else policy.keep_ratio,
            adaptive_budget=None if budget else adaptive,
        )

    def embedding(service: "ClipService") -> ModelCard:
        return ModelCard(id=service.name, created=created, root=service.name)

    def projection(service: "ClipService", name: str, stored: Artifact) -> ModelCard:
        return ModelCard(id=f"{service.name}/{name}", created=int(stored.created), root=service.name)

    @routes.get("/v1/models/", include_in_schema=False)
    @routes.get("/v1/models")
    async def list_models(request: Request) -> ModelList:
        cards = [card(served, None), *(card(f"{served}:{budget}", budget) for budget in budget_aliases)]
        if clip is not None:
            own = {
                name: one for one in await clip.spaces(request.state.caller.owner) for name in (one.name, one.reference)
            }
            cards += [embedding(clip), *(projection(clip, str(name), one) for name, one in own.items())]
        return ModelList(data=cards)

    @routes.get("/v1/models/{model:path}")
    async def retrieve_model(model: str, request: Request) -> ModelCard:
        if clip is not None and model == clip.name:
            return embedding(clip)
        if clip is not None and (name := projection_of(model, clip)) is not None:
            for one in reversed(await clip.spaces(request.state.caller.owner)):
                if name in (one.name, one.reference):
                    return projection(clip, name, one)
        return card(model, budget_in_name(model, served))

    return routes
