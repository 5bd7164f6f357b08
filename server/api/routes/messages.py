"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages API over the same chats."""

import json
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic_core import from_json

from covervlm.server.api.answer import Answer, Conversation
from covervlm.server.api.body import BodyRoute
from covervlm.server.api.errors import MESSAGES, MESSAGES_RESPONSES
from covervlm.server.api.exchange import event
from covervlm.server.api.report import pruning_report
from covervlm.server.api.sections import Begins, Ends, Grows, Section, Step, in_sections
from covervlm.server.api.wire import messages_response as wire
from covervlm.server.api.wire.as_chat import renamed
from covervlm.server.api.wire.messages_request import CountTokensRequest, MessagesRequest
from covervlm.server.core.answer import Ending
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.telemetry.request_record import RequestRecord

_EVENTS = "Anthropic's events, from message_start to message_stop, or to one named error."
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"description": _EVENTS}}}}
}


def router(conversation: Conversation) -> APIRouter:
    routes = APIRouter(tags=["messages"], responses=MESSAGES_RESPONSES, route_class=BodyRoute)

    @routes.post(MESSAGES, response_model=wire.MessagesAnswer, responses=_STREAM)
    async def create_message(body: MessagesRequest, request: Request) -> Response:
        """Anthropic's messages; `vision_pruning` says how many vision tokens the model reads."""
        record = request.state.record
        return await conversation.respond(
            body.chat.body,
            body.chat.names,
            request,
            lambda answer: MessageReply(answer, record),
            stream=bool(body.stream),
        )

    @routes.post(f"{MESSAGES}/count_tokens", response_model=wire.TokenCount)
    async def count_tokens(body: CountTokensRequest, request: Request) -> wire.TokenCount:
        """How many tokens the model would read for a message with the same body, after pruning."""
        try:
            generation = await conversation.prepared(body.chat.body, request.state.record, request.state.caller)
            tokens = await conversation.engine.tokenize(generation)
        except InvalidRequest as error:
            raise renamed(error, body.chat.names) from None
        return wire.TokenCount(input_tokens=len(tokens.ids))

    return routes


class MessageReply:
    """An answer in the form of Anthropic's Messages API."""

    def __init__(self, answer: Answer, record: RequestRecord) -> None:
        self._answer = answer
        self._record = record
        self._sections: list[Section] = []
        self._message = wire.MessagesAnswer(
            id=f"msg_{uuid.uuid4().hex}",
            type="message",
            role="assistant",
            model=record.model,
            content=[],
            stop_reason=None,
            stop_sequence=None,
            usage=self._usage(),
        )

    async def whole(self) -> bytes:
        async for step in in_sections(self._answer.parts()):
            self._take(step)
        self._begun()
        self._message.content = [_content(section) for section in self._sections]
        return self._message.model_dump_json(exclude_unset=True).encode()

    async def events(self) -> AsyncIterator[str]:
        try:
            async for step in in_sections(self._answer.parts()):
                self._take(step)
                for kind, fields in self._spelled(step):
                    yield event(json.dumps({"type": kind, **fields}, ensure_ascii=False), kind)
        except Exception as error:
            failure = self._answer.failed(error)
            yield event(json.dumps(failure.messages_body(self._record.request_id)), "error")

    def _take(self, step: Step) -> None:
        match step:
            case Begins(section):
                self._sections.append(section)
            case Ending():
                self._message.stop_reason = self._reason(step)
                if self._message.stop_reason == "stop_sequence":
                    self._message.stop_sequence = step.stop_string

    def _spelled(self, step: Step) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events that a step makes, by their names."""
        index = len(self._sections) - 1
        match step:
            case Begins(section):
                if index == 0:
                    self._begun()
                    self._message.usage.output_tokens = 0  # the first of them come with the events that follow
                    yield "message_start", {"message": self._message.model_dump(exclude_unset=True)}
                block = _content(section).model_dump()
                yield "content_block_start", {"index": index, "content_block": block}
                if index == 0:
                    yield "ping", {}
            case Grows(section, text):
                delta = {"type": "text_delta", "text": text}
                if section.call:
                    delta = {"type": "input_json_delta", "partial_json": text}
                yield "content_block_delta", {"index": index, "delta": delta}
            case Ends():
                yield "content_block_stop", {"index": index}
            case Ending():
                told = {"stop_reason": self._message.stop_reason, "stop_sequence": self._message.stop_sequence}
                yield "message_delta", {"delta": told, "usage": self._usage().model_dump()}
                yield "message_stop", {}

    def _reason(self, ending: Ending) -> wire.StopReason:
        if ending.reason == "length":
            return "max_tokens"
        if any(section.call for section in self._sections):
            return "tool_use"
        return "end_turn" if ending.stop_string is None else "stop_sequence"

    def _begun(self) -> None:
        """The prompt has been read: its usage and report are known."""
        self._message.usage = self._usage()
        if self._answer.prompt.images:
            self._message.vision_pruning = pruning_report(self._answer.prompt, self._record)

    def _usage(self) -> wire.MessagesUsage:
        prompt = self._answer.prompt
        return wire.MessagesUsage(
            input_tokens=prompt.prompt_tokens - prompt.cached_tokens,
            output_tokens=self._answer.completion_tokens,
            cache_creation_input_tokens=0,
            cache_read_input_tokens=prompt.cached_tokens,
        )


def _content(section: Section) -> wire.TextContent | wire.ToolUseContent:
    """A content block with what is known of it so far."""
    if section.call is None:
        return wire.TextContent(type="text", text=section.text)
    return wire.ToolUseContent(type="tool_use", id=section.call.id, name=section.call.name, input=_object(section.text))


def _object(text: str) -> dict[str, Any]:
    try:
        value = from_json(text or "{}", allow_partial="trailing-strings")
    except ValueError:  # the model has strayed from JSON
        return {}
    return value if isinstance(value, dict) else {}
