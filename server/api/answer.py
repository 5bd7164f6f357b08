"""From a chat to its answer as the routes read it: part by part, or whole; counted, and ended at any time."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from fastapi import Request
from fastapi.responses import Response

from covervlm.server.api.errors import Failure, describe
from covervlm.server.api.exchange import Reply, sent
from covervlm.server.api.preparation import Preparation
from covervlm.server.api.wire.as_chat import renamed
from covervlm.server.api.wire.chat_request import ChatCompletionRequest
from covervlm.server.core.answer import ArgumentsDelta, CallBegins, Ending, EndReason, Opening, Part, TextDelta
from covervlm.server.core.caller import Caller
from covervlm.server.core.engine import Engine
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import (
    GenerationChunk,
    GenerationRequest,
    PromptReport,
    TokenLogprob,
    ToolCall,
    ToolUse,
)
from covervlm.server.shadow.shadows import Shadows
from covervlm.server.telemetry.metrics import Metrics
from covervlm.server.telemetry.request_record import RequestRecord
from covervlm.server.tools.formats import FORMATS
from covervlm.server.tools.reader import CallReader

Item = TypeVar("Item")
Piece = TypeVar("Piece")


@dataclass
class Choice:
    """All parts of one choice, joined."""

    logprobs: list[TokenLogprob] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    reason: EndReason = "stop"
    _texts: list[str] = field(default_factory=list)
    _calls: list[tuple[CallBegins, list[str]]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def calls(self) -> list[ToolCall]:
        return [ToolCall(begun.id, begun.name, "".join(pieces)) for begun, pieces in self._calls]

    def take(self, part: Part) -> None:
        match part:
            case TextDelta():
                self._texts.append(part.text)
                self.logprobs += part.logprobs
                self.token_ids += part.token_ids
            case CallBegins():
                self._calls.append((part, []))
            case ArgumentsDelta():
                self._calls[part.call][1].append(part.text)
            case Ending():
                self.reason = part.reason


class Reading(Generic[Item]):
    """What comes of a request, read once: `begin` may wait for the first item, `read` has all; `release` ends it."""

    def __init__(self, items: AsyncIterator[Item], record: RequestRecord, metrics: Metrics) -> None:
        """items: an asynchronous generator."""
        self._items = cast(AsyncGenerator[Item, None], items)
        self._record = record
        self._metrics = metrics
        self._first: list[Item] = []

    async def begin(self) -> None:
        """Wait for the first item, so that what the engine refuses can still be answered with its own status."""
        with self._metrics.failures(self._record):
            self._first.append(await anext(self._items))

    async def read(self, take: Callable[[Item], Iterable[Piece]]) -> AsyncGenerator[Piece, None]:
        """All that `take` makes of each item. Raises what the engine raises; see `failed`."""
        with self._metrics.failures(self._record):
            for item in self._first:
                for piece in take(item):
                    yield piece
            async for item in self._items:
                for piece in take(item):
                    yield piece
                await asyncio.sleep(0)  # lets other requests run where more items are there already
        self._metrics.done(self._record)

    def failed(self, error: Exception) -> Failure:
        """The last event of a stream that fails on the way; notes its code in the request's record."""
        failure = describe(error, self._record.request_id)
        self._record.error = failure.detail.code
        return failure

    async def release(self) -> None:
        """Nobody reads on; what has not ended is cancelled by that."""
        await self._items.aclose()
        self._metrics.released(self._record)


class Answer(Reading[GenerationChunk]):
    """A generation, read by `whole`, or by `begin` and then `parts`.

    prompt, completion_tokens, written: what is known so far; once `parts` or `whole` have ended, all. echo: what every
    choice begins with. token_ids: whether parts of text name their tokens. written: the tokens of all choices, where
    token_ids is set.
    """

    def __init__(
        self,
        chunks: AsyncIterator[GenerationChunk],
        tools: ToolUse,
        record: RequestRecord,
        metrics: Metrics,
        *,
        echo: str = "",
        token_ids: bool = False,
    ) -> None:
        """tools: what may be called, and in which form; without functions, all is text."""
        super().__init__(chunks, record, metrics)
        self._echo = echo
        self._token_ids = token_ids
        self._tools = tools
        self._readers: dict[int, CallReader | None] = {}
        self.prompt = PromptReport(prompt_tokens=0)
        self.completion_tokens = 0
        self.written: list[int] = []

    def parts(self) -> AsyncGenerator[Part, None]:
        """Raises what the engine raises; see `failed`."""
        return self.read(self._parts)

    async def whole(self) -> list[Choice]:
        """Every choice in the order of their numbers."""
        choices: dict[int, Choice] = {}
        async for part in self.parts():
            choices.setdefault(part.index, Choice()).take(part)
        return [choices[index] for index in sorted(choices)]

    def _parts(self, chunk: GenerationChunk) -> Iterator[Part]:
        self._metrics.chunk(self._record, chunk)
        self.completion_tokens += chunk.tokens
        self.prompt = chunk.prompt or self.prompt
        if chunk.index not in self._readers:
            self._readers[chunk.index] = self._reader(chunk.index)
            yield Opening(chunk.index)
            if self._echo:
                yield TextDelta(chunk.index, self._echo)
        ids = chunk.token_ids if self._token_ids else ()
        self.written += ids
        if (reader := self._readers[chunk.index]) is None:
            if chunk.text or chunk.logprobs or ids:
                yield TextDelta(chunk.index, chunk.text, chunk.logprobs, ids)
            if chunk.finish_reason:
                yield Ending(chunk.index, chunk.finish_reason, chunk.stop_string)
            return
        if chunk.logprobs or ids:  # the text itself may still become part of a call
            yield TextDelta(chunk.index, "", chunk.logprobs, ids)
        yield from reader.feed(chunk.text)
        if chunk.finish_reason:
            yield from reader.end()
            # As in OpenAI's API, where a call that the caller has chosen does not end with "tool_calls".
            called = reader.calls and chunk.finish_reason == "stop" and not self._tools.named
            yield Ending(chunk.index, "tool_calls" if called else chunk.finish_reason, chunk.stop_string)

    def _reader(self, index: int) -> CallReader | None:
        if not (functions := self._tools.functions):
            return None
        names = {function.name for function in functions}
        return CallReader(FORMATS[self._tools.format], names, index=index, many=self._tools.parallel)


@dataclass(frozen=True)
class Conversation:
    """What it takes to answer a chat."""

    engine: Engine
    prepare: Preparation
    metrics: Metrics
    shadows: Shadows | None = None

    async def prepared(
        self, body: ChatCompletionRequest, record: RequestRecord, caller: Caller, *, return_indices: bool = False
    ) -> GenerationRequest:
        """The engine's request for a chat. Raises InvalidRequest, EngineOverloaded or RateLimited."""
        self.metrics.began(record)
        generation = await self.prepare(body, record, caller, return_indices=return_indices)
        self.metrics.prepared(record, generation)
        return generation

    def answer(self, body: ChatCompletionRequest, generation: GenerationRequest, record: RequestRecord) -> Answer:
        """Nothing is generated before it is read; some are compared with the unpruned model's afterwards."""
        chunks = self.engine.generate(generation)
        return Answer(
            chunks if self.shadows is None else self.shadows.watch(generation, chunks),
            generation.tools,
            record,
            self.metrics,
            echo=_echoed(generation) if body.echo else "",
            token_ids=bool(body.return_token_ids),
        )

    async def respond(
        self,
        body: ChatCompletionRequest,
        names: Mapping[str, str],
        request: Request,
        spell: Callable[[Answer], Reply],
        *,
        stream: bool,
    ) -> Response:
        """The answer as `spell` has it; names: what the caller's API calls a chat's fields, where that differs."""
        record = request.state.record
        try:
            answer = self.answer(body, await self.prepared(body, record, request.state.caller), record)
            return await sent(spell(answer), answer, stream=stream)
        except InvalidRequest as error:
            raise renamed(error, names) from None


def _echoed(request: GenerationRequest) -> str:
    """What `echo` repeats: the last message, if the answer continues it or begins no turn of its own; vLLM's rule."""
    last = request.messages[-1]
    return last.text if last.role == "assistant" or not request.template.add_generation_prompt else ""
