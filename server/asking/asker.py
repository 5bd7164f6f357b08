"""Whom to ask for a few words: the served model itself, or another server with OpenAI's API."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any, Protocol, cast

import httpx

from covervlm.clients.images import image_part
from covervlm.server.core.engine import Engine
from covervlm.server.core.generation import AgentReport, GenerationChunk, GenerationRequest, ImagePart, VideoPart

_SECONDS = 60.0


class NoAnswer(Exception):
    """The other server could not be reached, refused, or did not answer with a completion."""


class Asker(Protocol):
    """Answers a request in full; raises EngineError or NoAnswer."""

    async def __call__(self, request: GenerationRequest) -> AgentReport: ...

    async def close(self) -> None: ...


class EngineAsker:
    """The served model; the request counts against its caller, as any other does."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def __call__(self, request: GenerationRequest) -> AgentReport:
        text, tokens, prompt_tokens = [], 0, 0
        chunks = cast(AsyncGenerator[GenerationChunk, None], self._engine.generate(request))
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                text.append(chunk.text)
                tokens += chunk.tokens
                prompt_tokens = chunk.prompt.prompt_tokens if chunk.prompt else prompt_tokens
        return AgentReport("".join(text).strip(), prompt_tokens=prompt_tokens, completion_tokens=tokens)

    async def close(self) -> None:
        """The engine is not the asker's to stop."""


class EndpointAsker:
    """Another OpenAI-compatible server, asked with the same messages and images, which it prunes or not as it likes."""

    def __init__(
        self, url: str, model: str, api_key: str | None, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/"), headers=headers, transport=transport, timeout=_SECONDS
        )
        self._model = model

    async def __call__(self, request: GenerationRequest) -> AgentReport:
        sampling = request.sampling
        body = {
            "model": self._model,
            "messages": await asyncio.to_thread(_wire_messages, request),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
        }
        try:
            response = await self._client.post("/chat/completions", json=body)
            answer = response.raise_for_status().json()
            usage = answer.get("usage") or {}
            return AgentReport(
                str(answer["choices"][0]["message"]["content"]).strip(),
                prompt_tokens=int(usage.get("prompt_tokens", 0)),
                completion_tokens=int(usage.get("completion_tokens", 0)),
            )
        except (httpx.HTTPError, AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise NoAnswer(f"{type(error).__name__}: {error}") from None

    async def close(self) -> None:
        await self._client.aclose()


def _wire_messages(request: GenerationRequest) -> list[dict[str, Any]]:
    return [
        {"role": message.role, "content": [wire for part in message.content for wire in _wire_parts(part)]}
        for message in request.messages
    ]


def _wire_parts(part: str | ImagePart | VideoPart) -> list[dict[str, Any]]:
    """A part in OpenAI's terms, which know no videos: a clip goes as its frames."""
    if isinstance(part, str):
        return [{"type": "text", "text": part}]
    images = part.frames if isinstance(part, VideoPart) else (part.image,)
    return [image_part(image) for image in images]
