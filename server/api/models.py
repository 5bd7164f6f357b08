"""GET /v1/models: the served model, its names that carry a budget, such as demo:64, and the model that embeds."""

import time
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from covervlm.server.api.errors import MODEL_NOT_FOUND, RESPONSES
from covervlm.server.engines.base import Engine, InvalidRequest
from covervlm.server.settings import Settings


class ModelCard(BaseModel):
    """A model in OpenAI's terms and vLLM's (`root`, `max_model_len`), and its vision tokens per image.

    `vision_tokens` is null where it depends on the image; `keep_tokens` is the budget in an alias's name. The model
    that embeds has neither, and no `max_model_len`.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "covervlm"
    root: str
    max_model_len: int | None = None
    vision_tokens: int | None = None
    keep_tokens: int | None = None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


def budget_in_name(name: str, settings: Settings) -> int | None:
    """The budget that a model's name carries: 64 for `demo:64`, None for `demo`.

    Any budget may be named, not only those that are listed. Raises InvalidRequest for a model that is not served.
    """
    served = settings.model_name
    if name == served:
        return None
    budget = name.removeprefix(f"{served}:")
    if budget != name and budget.isascii() and budget.isdigit() and len(budget) < 10 and int(budget) > 0:
        return int(budget)
    message = f"The model '{name[:200]}' does not exist or does not chat; this server chats with '{served}'."
    raise InvalidRequest(message, param="model", code=MODEL_NOT_FOUND)


def router(engine: Engine, settings: Settings, embedding_model: str | None = None) -> APIRouter:
    routes = APIRouter(tags=["models"], responses=RESPONSES)
    created = int(time.time())

    def card(name: str, budget: int | None) -> ModelCard:
        return ModelCard(
            id=name,
            created=created,
            root=settings.model_name,
            max_model_len=engine.info.context_length,
            vision_tokens=engine.info.vision_tokens,
            keep_tokens=budget,
        )

    embedding = [ModelCard(id=embedding_model, created=created, root=embedding_model)] if embedding_model else []

    @routes.get("/v1/models")
    async def list_models() -> ModelList:
        served = settings.model_name
        aliases = [card(f"{served}:{budget}", budget) for budget in settings.budget_aliases]
        return ModelList(data=[card(served, None), *aliases, *embedding])

    @routes.get("/v1/models/{model:path}")
    async def retrieve_model(model: str) -> ModelCard:
        if model == embedding_model:
            return embedding[0]
        return card(model, budget_in_name(model, settings))

    return routes
