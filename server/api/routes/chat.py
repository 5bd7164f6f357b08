"""POST /v1/chat/completions and /v1/prune: from a checked body to an answer, whole or as events."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from covervlm.server.api.answer import Answer, Choice, Conversation
from covervlm.server.api.body import BodyRoute
from covervlm.server.api.errors import RESPONSES
from covervlm.server.api.exchange import DONE, event
from covervlm.server.api.openapi import events_of
from covervlm.server.api.report import Fingerprint, prune_response, pruning_report, usage
from covervlm.server.api.token_details import content_logprobs, prompt_logprobs
from covervlm.server.api.wire import chat_response as wire
from covervlm.server.api.wire.chat_request import ChatCompletionRequest
from covervlm.server.core.answer import ArgumentsDelta, CallBegins, Ending, Opening, Part, TextDelta
from covervlm.server.core.generation import TokenLogprob
from covervlm.server.telemetry.request_record import RequestRecord


def router(conversation: Conversation, fingerprint: Fingerprint) -> APIRouter:
    routes = APIRouter(tags=["chat"], responses=RESPONSES, route_class=BodyRoute)

    @routes.post(
        "/v1/chat/completions", response_model=wire.ChatCompletion, responses=events_of(wire.ChatCompletionChunk)
    )
    async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
        """OpenAI's chat completions; `vision_pruning` says how many vision tokens the model reads."""
        record = request.state.record
        return await conversation.respond(
            body,
            body.names,
            request,
            lambda answer: Completion(body, answer, record, fingerprint()),
            stream=bool(body.stream),
        )

    @routes.post("/v1/prune", response_model=wire.PruneResponse)
    async def prune(body: ChatCompletionRequest, request: Request) -> Response:
        """What a chat completion with the same body would keep of its images, without generating.

        Indices are in the answer unless `return_indices` is false. Fields that only sampling reads change nothing.
        """
        record = request.state.record
        generation = await conversation.prepared(body, record, request.state.caller, return_indices=True)
        prompt = await conversation.engine.prune(generation)
        conversation.metrics.prompt(record, prompt)
        report = prune_response(prompt, record)
        return Response(report.model_dump_json(exclude_unset=True), media_type="application/json")

    return routes


class Completion:
    """An answer in the form of OpenAI's chat completions."""

    def __init__(self, body: ChatCompletionRequest, answer: Answer, record: RequestRecord, fingerprint: str) -> None:
        self._body = body
        self._fingerprint = fingerprint
        self._answer = answer
        self._record = record
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._reported = False

    async def whole(self) -> bytes:
        """In JSON, when it is complete."""
        choices = await self._answer.whole()
        # Log probabilities are many: they are written in a thread, piece by piece, between which others run.
        details = self._body.logprobs or self._body.prompt_logprobs is not None
        return await asyncio.to_thread(self.written, choices) if details else self.written(choices)

    def written(self, choices: Sequence[Choice]) -> bytes:
        """In JSON, once all of these choices are read."""
        completion = wire.ChatCompletion(
            id=self._id,
            object="chat.completion",
            created=self._created,
            model=self._record.model,
            system_fingerprint=self._fingerprint,
            choices=[],
            usage=self._usage(),
        )
        prompt = self._answer.prompt
        if prompt.images:
            completion.vision_pruning = pruning_report(prompt, self._record)
        if self._body.return_token_ids:
            completion.prompt_token_ids = list(prompt.token_ids)
        if self._body.prompt_logprobs is not None:
            completion.prompt_logprobs = prompt_logprobs(prompt.logprobs, self._body.prompt_logprobs)
        written = [self._choice(i, choice).model_dump_json(exclude_unset=True) for i, choice in enumerate(choices)]
        whole = completion.model_dump_json(exclude_unset=True)
        return whole.replace('"choices":[]', f'"choices":[{",".join(written)}]', 1).encode()

    async def events(self) -> AsyncIterator[str]:
        """As server-sent events, from the first chunk on; a failure on the way is the last of them."""
        try:
            async for part in self._answer.parts():
                yield self._event([self._chunk_choice(part)], **self._report(part))
        except Exception as error:
            yield event(json.dumps(self._answer.failed(error).body))
            return
        if self._body.include_usage:
            yield self._event([], usage=self._usage())
        yield DONE

    def _chunk_choice(self, part: Part) -> wire.ChunkChoice:
        logprobs, reason, ids = None, None, None
        match part:
            case Opening():
                delta = wire.Delta(role="assistant", content="", refusal=None)
            case TextDelta():
                delta, logprobs = wire.Delta(content=part.text), self._logprobs(part.logprobs)
                ids = list(part.token_ids)
            case CallBegins():
                function = wire.FunctionDelta(name=part.name, arguments="")
                call = wire.ToolCallDelta(index=part.call, id=part.id, type="function", function=function)
                delta = wire.Delta(tool_calls=[call])
            case ArgumentsDelta():
                call = wire.ToolCallDelta(index=part.call, function=wire.FunctionDelta(arguments=part.text))
                delta = wire.Delta(tool_calls=[call])
            case Ending():
                delta, reason = wire.Delta(), part.reason
        choice = wire.ChunkChoice(index=part.index, delta=delta, logprobs=logprobs, finish_reason=reason)
        if ids:
            choice.token_ids = ids
        return choice

    def _report(self, part: Part) -> dict[str, Any]:
        """The fields that only the first event has."""
        if self._reported:
            return {}
        self._reported, prompt = True, self._answer.prompt
        report: dict[str, Any] = {"vision_pruning": pruning_report(prompt, self._record)} if prompt.images else {}
        if self._body.return_token_ids:
            report["prompt_token_ids"] = list(prompt.token_ids)
        return report

    def _usage(self) -> wire.Usage:
        return usage([self._answer.prompt], self._answer.completion_tokens)

    def _event(self, choices: list[wire.ChunkChoice], **fields: Any) -> str:
        if self._body.include_usage:
            fields.setdefault("usage", self._usage() if self._body.continuous_usage else None)
        chunk = wire.ChatCompletionChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._record.model,
            system_fingerprint=self._fingerprint,
            choices=choices,
            **fields,
        )
        return event(chunk.model_dump_json(exclude_unset=True))

    def _choice(self, index: int, choice: Choice) -> wire.Choice:
        message = wire.AssistantMessage(role="assistant", content=choice.text, refusal=None)
        if choice.calls:
            message.content = choice.text or None
            message.tool_calls = list(_tool_calls(choice))
        written = wire.Choice(
            index=index, message=message, logprobs=self._logprobs(choice.logprobs), finish_reason=choice.reason
        )
        if self._body.return_token_ids:
            written.token_ids = choice.token_ids
        return written

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> wire.Logprobs | None:
        if not self._body.logprobs:
            return None
        content = content_logprobs(tokens, by_id=bool(self._body.return_tokens_as_token_ids))
        return wire.Logprobs(content=content, refusal=None)


def _tool_calls(choice: Choice) -> Iterator[wire.ToolCall]:
    for call in choice.calls:
        function = wire.CalledFunction(name=call.name, arguments=call.arguments)
        yield wire.ToolCall(id=call.id, type="function", function=function)
