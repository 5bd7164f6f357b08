"""From a body that stands for a chat to an answer in the form of the API that it came by."""

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import Response

from covervlm.server.api.answer import Answer
from covervlm.server.api.exchange import Reply, sent
from covervlm.server.api.preparation import Preparation
from covervlm.server.api.wire.as_chat import AsChat
from covervlm.server.api.wire.chat_request import ChatCompletionRequest
from covervlm.server.core.engine import Engine
from covervlm.server.core.generation import GenerationRequest
from covervlm.server.telemetry.metrics import Metrics


@dataclass(frozen=True)
class Conversation:
    """What the routes need to answer a chat."""

    engine: Engine
    prepare: Preparation
    metrics: Metrics

    async def prepared(
        self, body: ChatCompletionRequest, request: Request, *, return_indices: bool = False
    ) -> GenerationRequest:
        record = request.state.record
        self.metrics.began(record)
        generation = await self.prepare(body, record, request.state.caller, return_indices=return_indices)
        self.metrics.prepared(record, generation)
        return generation

    async def respond(
        self, asked: AsChat, request: Request, spell: Callable[[Answer], Reply], *, stream: bool
    ) -> Response:
        with asked.refusals():
            generation = await self.prepared(asked.body, request)
            answer = Answer(self.engine.generate(generation), generation.tools, request.state.record, self.metrics)
            return await sent(spell(answer), answer, stream=stream)
