"""A generation as the routes read it: part by part as it comes, or whole; counted, and ended at any time."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import cast

from covervlm.server.api.errors import Failure, describe
from covervlm.server.core.answer import ArgumentsDelta, CallBegins, Ending, EndReason, Opening, Part, TextDelta
from covervlm.server.core.generation import GenerationChunk, PromptReport, TokenLogprob, ToolCall, ToolUse
from covervlm.server.telemetry.metrics import Metrics
from covervlm.server.telemetry.request_record import RequestRecord
from covervlm.server.tools.formats import FORMATS
from covervlm.server.tools.reader import CallReader


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


class Answer:
    """Reads a generation once: by `whole`, or by `begin` and then `parts`; `release` ends it at any time.

    prompt, completion_tokens: what is known so far; once `parts` or `whole` have ended, all. echo: what every choice
    begins with. token_ids: whether parts of text name their tokens.
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
        self._chunks = cast(AsyncGenerator[GenerationChunk, None], chunks)
        self._record = record
        self._metrics = metrics
        self._echo = echo
        self._token_ids = token_ids
        self._first: list[GenerationChunk] = []
        self._tools = tools
        self._readers: dict[int, CallReader | None] = {}
        self.prompt = PromptReport(prompt_tokens=0)
        self.completion_tokens = 0

    async def begin(self) -> None:
        """Wait for the first chunk, so that what the engine refuses can still be answered with its own status."""
        with self._metrics.failures(self._record):
            self._first.append(await anext(self._chunks))

    async def parts(self) -> AsyncGenerator[Part, None]:
        """Raises what the engine raises; see `failed`."""
        with self._metrics.failures(self._record):
            for chunk in self._first:
                for part in self._read(chunk):
                    yield part
            async for chunk in self._chunks:
                for part in self._read(chunk):
                    yield part
                await asyncio.sleep(0)  # lets other requests run where more chunks are there already
        self._metrics.done(self._record)

    async def whole(self) -> list[Choice]:
        """Every choice in the order of their numbers."""
        choices: dict[int, Choice] = {}
        async for part in self.parts():
            choices.setdefault(part.index, Choice()).take(part)
        return [choices[index] for index in sorted(choices)]

    def failed(self, error: Exception) -> Failure:
        """The last event of a stream that fails on the way; notes its code in the request's record."""
        failure = describe(error, self._record.request_id)
        self._record.error = failure.detail.code
        return failure

    async def release(self) -> None:
        """Close the generation; one that has not ended is cancelled by that."""
        await self._chunks.aclose()
        self._metrics.released(self._record)

    def _read(self, chunk: GenerationChunk) -> Iterator[Part]:
        self._metrics.chunk(self._record, chunk)
        self.completion_tokens += chunk.tokens
        self.prompt = chunk.prompt or self.prompt
        if chunk.index not in self._readers:
            self._readers[chunk.index] = self._reader(chunk.index)
            yield Opening(chunk.index)
            if self._echo:
                yield TextDelta(chunk.index, self._echo)
        ids = chunk.token_ids if self._token_ids else ()
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
