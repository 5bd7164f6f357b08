"""POST /v1/responses: OpenAI's Responses API over the same chats; nothing is stored."""

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel
from pydantic_core import to_json

from covervlm.server.api.answer import Answer, Conversation
from covervlm.server.api.body import BodyRoute
from covervlm.server.api.errors import RESPONSES, Failure
from covervlm.server.api.exchange import event
from covervlm.server.api.report import pruning_report
from covervlm.server.api.sections import Begins, Ends, Grows, Section, Step, in_sections
from covervlm.server.api.timings import Timings
from covervlm.server.api.token_details import content_logprobs
from covervlm.server.api.wire import responses_response as wire
from covervlm.server.api.wire.responses_request import ResponsesRequest
from covervlm.server.core.answer import Ending
from covervlm.server.core.engine import EngineInfo
from covervlm.server.telemetry.request_record import RequestRecord

_EVENTS = "OpenAI's events, from response.created to response.completed, response.incomplete or response.failed."
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"description": _EVENTS}}}}
}


def router(conversation: Conversation) -> APIRouter:
    routes = APIRouter(tags=["responses"], responses=RESPONSES, route_class=BodyRoute)

    @routes.post("/v1/responses", response_model=wire.ResponsesAnswer, responses=_STREAM)
    async def create_response(body: ResponsesRequest, request: Request) -> Response:
        """OpenAI's responses, without their storage; `vision_pruning` says how many vision tokens the model reads."""
        record, caller = request.state.record, request.state.caller

        async def spelt(ids: Sequence[int]) -> str:
            return await conversation.engine.detokenize(ids, caller) if ids else ""

        return await conversation.respond(
            body.chat.body,
            body.chat.names,
            request,
            lambda answer: ResponseReply(body, answer, record, conversation.engine.info, spelt),
            stream=bool(body.stream),
        )

    return routes


class ResponseReply:
    """An answer in the form of OpenAI's Responses API."""

    def __init__(
        self,
        body: ResponsesRequest,
        answer: Answer,
        record: RequestRecord,
        engine: EngineInfo,
        spelt: Callable[[Sequence[int]], Awaitable[str]],
    ) -> None:
        """spelt: the text of tokens."""
        self._body = body
        self._answer = answer
        self._spelt = spelt
        self._timings = Timings()
        self._record = record
        self._logprobs = body.logprobs
        self._ids: list[str] = []
        self._events = 0
        sampling, choice = body.chat.body.sampling(engine.sampling), body.tool_choice
        self._response = wire.ResponsesAnswer(
            id=f"resp_{uuid.uuid4().hex}",
            created_at=int(time.time()),
            model=record.model,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_logprobs=body.top_logprobs or 0,
            text={"format": {"type": "text"}} | (body.text.model_dump(**_AS_SENT) if body.text else {}),
            tools=[_TOOL | tool.model_dump(**_AS_SENT) for tool in body.tools or ()],
            tool_choice=choice.model_dump() if isinstance(choice, BaseModel) else choice or "auto",
            parallel_tool_calls=body.parallel_tool_calls is not False,
            metadata=body.metadata or {},
            reasoning=None if body.reasoning is None else {"effort": body.reasoning.effort, "summary": None},
        )

    async def whole(self) -> bytes:
        async for step in in_sections(self._answer.parts()):
            self._take(step)
        await self._tell_tokens()
        return self._response.model_dump_json(exclude=self._absent()).encode()

    async def events(self) -> AsyncIterator[str]:
        try:
            async for step in in_sections(self._answer.parts()):
                if not self._events:
                    yield self._event("created", response=self._told())
                    yield self._event("in_progress", response=self._told(), **self._progress())
                self._take(step)
                if isinstance(step, Ending):
                    await self._tell_tokens()
                timings = self._timed()
                for kind, fields in self._spelled(step):
                    yield self._event(kind, **fields, **timings)
        except Exception as error:
            self._fail(self._answer.failed(error))
            yield self._event("failed", response=self._told())

    def _take(self, step: Step) -> None:
        response = self._response
        match step:
            case Begins(section):
                self._ids.append(f"{'fc' if section.call else 'msg'}_{uuid.uuid4().hex}")
                response.output.append(self._item(section, "in_progress"))
            case Ends(section):
                response.output[-1] = self._item(section, "completed")
            case Ending(reason=reason):
                cut = reason == "length"
                response.status = response.output[-1].status = "incomplete" if cut else "completed"
                if cut:
                    response.incomplete_details = wire.IncompleteDetails(reason="max_output_tokens")
                response.usage = self._usage()

    def _spelled(self, step: Step) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events that a step makes, by their names."""
        item, place = self._response.output[-1], {"output_index": len(self._ids) - 1}
        inside = {**place, "item_id": self._ids[-1]}
        text = {**inside, "content_index": 0}
        match step:
            case Begins(section) if section.call:
                yield "output_item.added", {**place, "item": item}
            case Begins():
                yield "output_item.added", {**place, "item": item.model_copy(update={"content": []})}
                yield "content_part.added", {**text, "part": self._part(Section())}
            case Grows(section, delta) if section.call:
                yield "function_call_arguments.delta", {**inside, "delta": delta}
            case Grows(_, delta, logprobs):
                shown = content_logprobs(logprobs) if self._logprobs else []
                yield "output_text.delta", {**text, "delta": delta, "logprobs": shown}
            case Ends(section) if section.call:
                called = {"name": section.call.name, "arguments": section.text}
                yield "function_call_arguments.done", {**inside, **called}
                yield "output_item.done", {**place, "item": item}
            case Ends(section):
                part = self._part(section)
                yield "output_text.done", {**text, "text": part.text, "logprobs": part.logprobs}
                yield "content_part.done", {**text, "part": part}
                yield "output_item.done", {**place, "item": item}
            case Ending():
                yield self._response.status, {"response": self._told()}

    def _progress(self) -> dict[str, Any]:
        return {"prompt_progress": self._timings.progress(self._answer.prompt)} if self._body.return_progress else {}

    def _timed(self) -> dict[str, Any]:
        if not self._body.timings_per_token:
            return {}
        return {"timings": self._timings.so_far(self._answer.prompt, self._answer.completion_tokens)}

    async def _tell_tokens(self) -> None:
        """Prompt and answer as tokens, where they are asked for."""
        if self._body.enable_response_messages:
            self._response.input_messages = [await self._raw(self._answer.prompt.token_ids)]
            self._response.output_messages = [await self._raw(self._answer.written)]

    async def _raw(self, ids: Sequence[int]) -> wire.RawMessage:
        return wire.RawMessage(message=await self._spelt(ids), tokens=list(ids))

    def _event(self, kind: str, **fields: Any) -> str:
        name = f"response.{kind}"
        written = to_json({"type": name, "sequence_number": self._events, **fields}).decode()
        self._events += 1
        return event(written, name)

    def _told(self) -> dict[str, Any]:
        return self._response.model_dump(exclude=self._absent())

    def _absent(self) -> set[str]:
        """Fields to leave out: the pruning report, unless there are images; fills it in where there are."""
        absent = set() if self._body.enable_response_messages else {"input_messages", "output_messages"}
        if not self._answer.prompt.images:
            return absent | {"vision_pruning"}
        if self._response.vision_pruning is None:
            self._response.vision_pruning = pruning_report(self._answer.prompt, self._record)
        return absent

    def _item(self, section: Section, status: wire.Status) -> wire.OutputMessage | wire.OutputCall:
        if section.call is None:
            content = [self._part(section)]
            return wire.OutputMessage(
                type="message", id=self._ids[-1], role="assistant", status=status, content=content
            )
        return wire.OutputCall(
            type="function_call",
            id=self._ids[-1],
            call_id=section.call.id,
            name=section.call.name,
            arguments=section.text,
            status=status,
        )

    def _part(self, section: Section) -> wire.OutputText:
        logprobs = content_logprobs(section.logprobs) if self._logprobs else []
        return wire.OutputText(type="output_text", text=section.text, annotations=[], logprobs=logprobs)

    def _usage(self) -> wire.ResponsesUsage:
        prompt, written = self._answer.prompt, self._answer.completion_tokens
        return wire.ResponsesUsage(
            input_tokens=prompt.prompt_tokens,
            input_tokens_details=wire.InputTokensDetails(cached_tokens=prompt.cached_tokens, cache_write_tokens=0),
            output_tokens=written,
            output_tokens_details=wire.OutputTokensDetails(reasoning_tokens=0),
            total_tokens=prompt.prompt_tokens + written,
        )

    def _fail(self, failure: Failure) -> None:
        code: wire.ErrorCode = "server_error"
        if failure.status < 500:
            code = "rate_limit_exceeded" if failure.status == 429 else "invalid_prompt"
        self._response.status = "failed"
        for item in self._response.output[-1:]:
            item.status = "incomplete" if item.status == "in_progress" else item.status
        self._response.error = wire.ResponsesError(code=code, message=failure.detail.message)


_AS_SENT: dict[str, Any] = {"by_alias": True, "exclude_none": True}
_TOOL: dict[str, Any] = {"parameters": None, "strict": True}
