"""Asking a server that speaks OpenAI's streamed chat completions, which is all of them but OpenVINO GenAI."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
from speed.streamed import ask
from speed.workload import Asked

from beside.contract import TOKENS, Answer, Ask

SECONDS = 600


@asynccontextmanager
async def asking(url: str, model: str, *variants: Mapping[str, Any], greets: bool = False) -> AsyncIterator[list[Ask]]:
    """One way to ask for each mapping of further fields.

    greets: whether the server sends an event before it has a token; then the first text counts as the first token.
    """
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=url, timeout=SECONDS, limits=limits) as client:
        yield [_asker(client, {"model": model, **fields}, greets) for fields in variants]


def _asker(client: httpx.AsyncClient, fields: Mapping[str, Any], greets: bool) -> Ask:
    async def one(asked: Asked) -> Answer:
        content = [
            {"type": "image_url", "image_url": {"url": asked.image}},
            {"type": "text", "text": asked.question},
        ]
        answer = await ask(
            client,
            {
                "messages": [{"role": "user", "content": content}],
                "temperature": 0,
                "max_tokens": TOKENS,
                "stream": True,
                "stream_options": {"include_usage": True},
                **fields,
            },
        )
        first = answer.first_text if greets else answer.first_event
        return Answer(first, answer.end, answer.prompt_tokens, answer.completion_tokens)

    return one
