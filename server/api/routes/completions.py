"""POST /v1/completions: text without a chat template, for one prompt or many at once, whole or as events."""

import asyncio
import json
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from fastapi import APIRouter, Request
from fastapi.responses import Response

from covervlm.server.api.answer import Reading
from covervlm.server.api.body import BodyRoute
from covervlm.server.api.errors import RESPONSES
from covervlm.server.api.exchange import DONE, event, sent
from covervlm.server.api.openapi import events_of
from covervlm.server.api.preparation import Preparation
from covervlm.server.api.report import Fingerprint, usage
from covervlm.server.api.token_details import TextOffsets, finite, prompt_logprobs, prompt_offsets, token_name
from covervlm.server.api.wire.chat_response import Usage
from covervlm.server.api.wire.completion_request import CompletionRequest
from covervlm.server.api.wire.completion_response import Completion, CompletionChoice, CompletionLogprobs
from covervlm.server.core.engine import Engine
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import FinishReason, GenerationChunk, PromptReport, TextPrompt, TokenLogprob
from covervlm.server.core.tasks import all_or_none, side_by_side
from covervlm.server.telemetry.metrics import Metrics
from covervlm.server.telemetry.request_record import RequestRecord


def router(engine: Engine, prepare: Preparation, metrics: Metrics, fingerprint: Fingerprint) -> APIRouter:
    routes = APIRouter(tags=["completions"], responses=RESPONSES, route_class=BodyRoute)

    async def echoed(prompt: TextPrompt, request: Request) -> str:
        if isinstance(prompt.content, str):
            return prompt.content
        try:
            return await engine.detokenize(prompt.content, request.state.caller)
        except InvalidRequest as error:
            error.param = "prompt"  # where this body has its tokens
            raise

    @routes.post("/v1/completions", response_model=Completion, responses=events_of(Completion))
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """OpenAI's text completions. Prompts are texts or token ids; images are sent in chats."""
        record, prompts = request.state.record, body.prompts
        metrics.began(record)
        sampling = body.sampling(engine.info.sampling)
        requests = prepare.texts(body.model, prompts, record, request.state.caller, sampling)
        texts = await all_or_none(echoed(prompt, request) for prompt in prompts) if body.echo else [""] * len(prompts)
        metrics.prepared(record, requests[0])
        streams = [cast(AsyncGenerator[GenerationChunk, None], engine.generate(one)) for one in requests]
        answer = CompletionAnswer(body, side_by_side(streams), texts, fingerprint(), record, metrics)
        return await sent(answer, answer, stream=bool(body.stream))

    return routes


@dataclass
class Piece:
    """What is new in one choice, or all of it."""

    texts: list[str] = field(default_factory=list)
    prompt: Sequence[TokenLogprob] = ()
    logprobs: list[TokenLogprob] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    reason: FinishReason | None = None


class CompletionAnswer(Reading[tuple[int, GenerationChunk]]):
    """The generations of one request, each chunk with its prompt's number: read by `whole`, or by `events`."""

    def __init__(
        self,
        body: CompletionRequest,
        chunks: AsyncGenerator[tuple[int, GenerationChunk], None],
        texts: Sequence[str],
        fingerprint: str,
        record: RequestRecord,
        metrics: Metrics,
    ) -> None:
        """texts: what is echoed of each prompt."""
        super().__init__(chunks, record, metrics)
        self._body = body
        self._texts = texts
        self._n = body.n or 1
        self._prompts: dict[int, PromptReport] = {}
        self._offsets: dict[int, TextOffsets] = {}
        self._completion_tokens = 0
        self._head: dict[str, Any] = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": record.model,
            "system_fingerprint": fingerprint,
        }

    async def whole(self) -> bytes:
        """The answer in JSON when it is complete."""
        pieces: defaultdict[int, Piece] = defaultdict(Piece)

        def take(item: tuple[int, GenerationChunk]) -> Sequence[Piece]:
            prompt, chunk = item
            self._take(prompt, chunk, pieces[prompt * self._n + chunk.index])
            return ()

        async for _ in self.read(take):
            pass

        def write() -> bytes:
            choices = [self._choice(index, pieces[index], last=True) for index in sorted(pieces)]
            completion = Completion(**self._head, choices=choices, usage=self._usage())
            return completion.model_dump_json(exclude_unset=True).encode()

        # Log probabilities are many, so they are written in a thread.
        details = self._body.logprobs is not None or self._body.prompt_logprobs is not None
        return await asyncio.to_thread(write) if details else write()

    async def events(self) -> AsyncIterator[str]:
        """The answer as server-sent events; a failure on the way is the last of them."""
        try:
            async for text in self.read(self._event_of):
                yield text
        except Exception as error:
            yield event(json.dumps(self.failed(error).body))
            return
        if self._body.include_usage:
            yield event(Completion(**self._head, choices=[], usage=self._usage()).model_dump_json(exclude_unset=True))
        yield DONE

    def _event_of(self, item: tuple[int, GenerationChunk]) -> Iterator[str]:
        prompt, chunk = item
        piece, index = Piece(), prompt * self._n + chunk.index
        begins = index not in self._offsets
        self._take(prompt, chunk, piece)
        says = "".join(piece.texts) or piece.logprobs or piece.prompt or piece.reason
        if says or (self._body.return_token_ids and (begins or piece.token_ids)):
            completion = Completion(**self._head, choices=[self._choice(index, piece, first=begins)])
            if self._body.include_usage:
                completion.usage = self._usage() if self._body.continuous_usage else None
            yield event(completion.model_dump_json(exclude_unset=True))

    def _take(self, prompt: int, chunk: GenerationChunk, piece: Piece) -> None:
        """Count a chunk, and add its content to the piece; a choice begins with its prompt where that is echoed."""
        body, index = self._body, prompt * self._n + chunk.index
        self._metrics.chunk(self._record, chunk, choice=index)
        if chunk.prompt is not None:
            self._prompts[prompt] = chunk.prompt
        if index not in self._offsets:
            text = self._texts[prompt]
            self._offsets[index] = TextOffsets(len(text), specials=body.skip_special_tokens is False)
            piece.texts.append(text)
            piece.prompt = self._prompts[prompt].logprobs if body.echo and body.logprobs is not None else ()
        piece.reason = chunk.finish_reason or piece.reason
        if body.only_echo:
            piece.reason = piece.reason and "length"
            return
        self._completion_tokens += chunk.tokens
        piece.texts.append(chunk.text)
        piece.logprobs += chunk.logprobs
        piece.token_ids += chunk.token_ids

    def _choice(self, index: int, piece: Piece, *, first: bool = False, last: bool = False) -> CompletionChoice:
        """first: the choice begins with this piece. last: the piece is all of it."""
        body, report = self._body, self._prompts[index // self._n]
        logprobs = None if body.logprobs is None else self._logprobs(index, piece, body.logprobs)
        choice = CompletionChoice(index=index, text="".join(piece.texts), logprobs=logprobs, finish_reason=piece.reason)
        if last:  # vLLM's clients read these whether or not they asked for them
            choice.token_ids = choice.prompt_token_ids = choice.prompt_logprobs = None
        if body.return_token_ids:
            choice.token_ids = piece.token_ids
            if first or last:
                choice.prompt_token_ids = list(report.token_ids)
        if last and body.prompt_logprobs is not None:
            choice.prompt_logprobs = prompt_logprobs(report.logprobs, body.prompt_logprobs)
        return choice

    def _logprobs(self, index: int, piece: Piece, top: int) -> CompletionLogprobs:
        tokens = [*piece.prompt, *piece.logprobs]
        # A prompt's may be more than an answer's.
        tops = [token.top[:top] for token in piece.prompt] + [token.top for token in piece.logprobs]
        values = [None if token.logprob != token.logprob else finite(token.logprob) for token in tokens]
        offsets = [*prompt_offsets(self._texts[index // self._n], piece.prompt)]
        offsets += [self._offsets[index].of(token) for token in piece.logprobs]
        return CompletionLogprobs(
            tokens=[self._name(token) for token in tokens],
            token_logprobs=values,
            top_logprobs=[
                None if value is None else {self._name(one): finite(one.logprob) for one in (token, *likeliest)}
                for token, value, likeliest in zip(tokens, values, tops, strict=True)
            ],
            text_offset=offsets,
        )

    def _name(self, token: TokenLogprob) -> str:
        return token_name(token, by_id=bool(self._body.return_tokens_as_token_ids))

    def _usage(self) -> Usage:
        return usage(self._prompts.values(), self._completion_tokens)
