"""One answer in the making: the engine's chunks become OpenAI's objects, whole or as events."""

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from covervlm.server.api.chat_request import ChatCompletionRequest
from covervlm.server.api.chat_response import (
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Delta,
    Logprobs,
    PruningReport,
    Usage,
)
from covervlm.server.api.errors import describe
from covervlm.server.api.event_stream import DONE, event
from covervlm.server.api.prepare import Prepared
from covervlm.server.api.request_metrics import RequestMetrics
from covervlm.server.engines.base import FinishReason, GenerationChunk, PromptReport, TokenLogprob


@dataclass
class ChoiceParts:
    """What has come in of one choice."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason = "stop"


class Answer:
    """Reads a generation once, by `whole`, or by `begin` and then `events`; `release` ends it at any time."""

    def __init__(
        self,
        body: ChatCompletionRequest,
        prepared: Prepared,
        chunks: AsyncGenerator[GenerationChunk, None],
        metrics: RequestMetrics,
    ) -> None:
        self._body = body
        self._prepared = prepared
        self._chunks = chunks
        self._metrics = metrics
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._first: GenerationChunk | None = None
        self._prompt = PromptReport(prompt_tokens=0)
        self._completion_tokens = 0

    async def whole(self) -> ChatCompletion:
        """The answer when it is complete."""
        choices: dict[int, ChoiceParts] = {}
        with self._metrics.failures():
            async for chunk in self._chunks:
                self._take(chunk)
                parts = choices.setdefault(chunk.index, ChoiceParts())
                parts.text.append(chunk.text)
                parts.logprobs += chunk.logprobs
                parts.finish_reason = chunk.finish_reason or parts.finish_reason
        self._metrics.done()
        completion = ChatCompletion(
            id=self._id,
            object="chat.completion",
            created=self._created,
            model=self._body.model,
            choices=[self._choice(index, parts) for index, parts in sorted(choices.items())],
            usage=Usage.of(self._prompt, self._completion_tokens),
        )
        if self._prompt.images:
            completion.vision_pruning = self._pruning()
        return completion

    async def begin(self) -> None:
        """Wait for the first chunk, so that what the engine refuses can still be answered with its own status."""
        with self._metrics.failures():
            self._first = await anext(self._chunks)

    async def events(self) -> AsyncIterator[str]:
        """The answer as server-sent events, from the first chunk on; a failure on the way is the last of them."""
        assert self._first is not None
        started: set[int] = set()
        try:
            with self._metrics.failures():
                for text in self._chunk_events(self._first, started):
                    yield text
                async for chunk in self._chunks:
                    for text in self._chunk_events(chunk, started):
                        yield text
        except Exception as error:
            failure = describe(error, self._prepared.request.request_id)
            self._metrics.failed(failure.detail.code)
            yield event(json.dumps(failure.body))
            return
        self._metrics.done()
        if self._body.include_usage:
            yield self._event([], usage=Usage.of(self._prompt, self._completion_tokens))
        yield DONE

    async def release(self) -> None:
        """Close the generation; one that has not ended is cancelled by that."""
        await self._chunks.aclose()
        self._metrics.released()

    def _chunk_events(self, chunk: GenerationChunk, started: set[int]) -> Iterator[str]:
        self._take(chunk)
        if chunk.index not in started:
            started.add(chunk.index)
            opening = Delta(role="assistant", content="", refusal=None)
            report = {"vision_pruning": self._pruning()} if chunk.prompt and chunk.prompt.images else {}
            yield self._event([_chunk_choice(chunk.index, opening)], **report)
        if chunk.text or chunk.logprobs:
            yield self._event([_chunk_choice(chunk.index, Delta(content=chunk.text), self._logprobs(chunk.logprobs))])
        if chunk.finish_reason:
            yield self._event([_chunk_choice(chunk.index, Delta(), finish_reason=chunk.finish_reason)])

    def _take(self, chunk: GenerationChunk) -> None:
        self._metrics.chunk(chunk)
        self._completion_tokens += chunk.tokens
        self._prompt = chunk.prompt or self._prompt

    def _event(self, choices: list[ChunkChoice], **fields: Any) -> str:
        if self._body.include_usage:
            so_far = Usage.of(self._prompt, self._completion_tokens) if self._body.continuous_usage else None
            fields.setdefault("usage", so_far)
        chunk = ChatCompletionChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._body.model,
            choices=choices,
            **fields,
        )
        return event(chunk.model_dump_json(exclude_unset=True))

    def _choice(self, index: int, parts: ChoiceParts) -> Choice:
        message = AssistantMessage(role="assistant", content="".join(parts.text), refusal=None)
        return Choice(
            index=index, message=message, logprobs=self._logprobs(parts.logprobs), finish_reason=parts.finish_reason
        )

    def _logprobs(self, tokens: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> Logprobs | None:
        return Logprobs.of(tokens) if self._body.logprobs else None

    def _pruning(self) -> PruningReport:
        prepared = self._prepared
        return PruningReport.of(self._prompt, prepared.media_seconds, prepared.agent, adaptive=prepared.adaptive)


def _chunk_choice(
    index: int, delta: Delta, logprobs: Logprobs | None = None, finish_reason: FinishReason | None = None
) -> ChunkChoice:
    return ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason)
