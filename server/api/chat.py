"""POST /v1/chat/completions and /v1/prune: from a checked body to an answer, whole or as events."""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import cast

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel

from covervlm.server.api.answer import Answer
from covervlm.server.api.chat_request import ChatCompletionRequest
from covervlm.server.api.chat_response import ChatCompletion, ChatCompletionChunk, PruneResponse, PruningReport
from covervlm.server.api.disconnect import unless_disconnected
from covervlm.server.api.errors import RESPONSES
from covervlm.server.api.event_stream import EventStream
from covervlm.server.api.metrics import Metrics
from covervlm.server.api.openapi import events_of
from covervlm.server.api.owner import owner
from covervlm.server.api.prepare import Preparation
from covervlm.server.engines.base import Engine, GenerationChunk


def router(engine: Engine, prepare: Preparation, metrics: Metrics) -> APIRouter:
    routes = APIRouter(tags=["chat"], responses=RESPONSES)

    events = events_of(ChatCompletionChunk)

    @routes.post("/v1/chat/completions", response_model=ChatCompletion, responses=events)
    async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
        """OpenAI's chat completions; `vision_pruning` says how many vision tokens the model reads."""
        clock = metrics.request(request.state.record)
        prepared = await unless_disconnected(request, prepare(body, request.state.request_id, owner(request)))
        clock.prepared(prepared, body.model)
        chunks = cast(AsyncGenerator[GenerationChunk, None], engine.generate(prepared.request))
        answer = Answer(body, prepared, chunks, clock)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(answer.release)
            if not body.stream:
                return _json(await unless_disconnected(request, answer.whole()))
            await unless_disconnected(request, answer.begin())
            stack.pop_all()
            return EventStream(answer.events(), answer.release)

    @routes.post("/v1/prune", response_model=PruneResponse)
    async def prune(body: ChatCompletionRequest, request: Request) -> Response:
        """What a chat completion with the same body would keep of its images, without generating.

        Indices are in the answer unless `return_indices` is false. Fields that only sampling reads change nothing.
        """
        clock = metrics.request(request.state.record)
        work = prepare(body, request.state.request_id, owner(request), return_indices=True)
        prepared = await unless_disconnected(request, work)
        clock.prepared(prepared, body.model)
        prompt = await unless_disconnected(request, engine.prune(prepared.request))
        clock.prompt(prompt)
        report = PruningReport.of(prompt, prepared.media_seconds, prepared.agent, adaptive=prepared.adaptive)
        return _json(
            PruneResponse(
                id=f"prune-{uuid.uuid4().hex}",
                object="vision_pruning",
                created=int(time.time()),
                model=body.model,
                prompt_tokens=prompt.prompt_tokens,
                **{name: getattr(report, name) for name in report.model_fields_set},
            )
        )

    return routes


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")
