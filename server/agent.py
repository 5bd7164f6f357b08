"""The agent of MMTok: a cheap first answer to the question, whose words join those that guide the selection.

The paper asks a small model (arXiv 2508.18264, section on agents); here it is the served model itself with a handful
of vision tokens, or another OpenAI-compatible endpoint. A failing agent costs its time limit and nothing else.
"""

import asyncio
import base64
import contextlib
import io
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import httpx

from covervlm.server.engines.base import (
    Engine,
    EngineError,
    GenerationChunk,
    GenerationRequest,
    ImagePart,
    SamplingParams,
    TextPart,
    VideoPart,
)
from covervlm.server.settings import Settings

log = logging.getLogger(__name__)

_ANSWER_TOKENS = 32


@dataclass(frozen=True)
class AgentReport:
    """What the first pass said and cost. `answer` is empty where it failed, and then `error` says why in a word."""

    answer: str = ""
    error: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


class Agent(Protocol):
    """Answers a request's question fast, from fewer vision tokens or a smaller model; may raise anything."""

    async def answer(self, request: GenerationRequest) -> AgentReport: ...


def build_agent(engine: Engine, settings: Settings) -> Agent:
    """The agent that the settings ask for: an endpoint where one is given, else the served model itself."""
    if settings.agent_url is None:
        return SelfAgent(engine, settings.agent_tokens)
    key = settings.agent_api_key
    return EndpointAgent(settings.agent_url, settings.agent_model, key.get_secret_value() if key else None)


class SelfAgent:
    """The served model with `tokens` vision tokens per image."""

    def __init__(self, engine: Engine, tokens: int) -> None:
        self._engine = engine
        self._tokens = tokens

    async def answer(self, request: GenerationRequest) -> AgentReport:
        pruning = replace(
            request.pruning,
            keep_tokens=self._tokens,
            keep_ratio=None,
            coverage=None,
            guide="last_user",
            return_indices=False,
        )
        sampling = SamplingParams(max_tokens=_ANSWER_TOKENS, temperature=0)
        first = replace(request, request_id=f"{request.request_id}-agent", pruning=pruning, sampling=sampling)
        text, tokens, prompt_tokens = [], 0, 0
        chunks = cast(AsyncGenerator[GenerationChunk, None], self._engine.generate(first))
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                text.append(chunk.text)
                tokens += chunk.tokens
                prompt_tokens = chunk.prompt.prompt_tokens if chunk.prompt else prompt_tokens
        return AgentReport("".join(text).strip(), prompt_tokens=prompt_tokens, completion_tokens=tokens)


class EndpointAgent:
    """Another OpenAI-compatible server, asked with the same messages and images."""

    def __init__(
        self, url: str, model: str, api_key: str | None, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.AsyncClient(base_url=url.rstrip("/"), headers=headers, transport=transport)
        self._model = model

    async def answer(self, request: GenerationRequest) -> AgentReport:
        messages = await asyncio.to_thread(_wire_messages, request)
        body = {"model": self._model, "messages": messages, "max_tokens": _ANSWER_TOKENS, "temperature": 0}
        response = await self._client.post("/chat/completions", json=body)
        response.raise_for_status()
        answer = response.json()
        usage = answer.get("usage") or {}
        return AgentReport(
            str(answer["choices"][0]["message"]["content"]).strip(),
            prompt_tokens=int(usage.get("prompt_tokens", 0)),
            completion_tokens=int(usage.get("completion_tokens", 0)),
        )


async def consult(agent: Agent, request: GenerationRequest, timeout: float) -> AgentReport:
    """Ask the agent, for at most `timeout` seconds; whatever goes wrong becomes part of the report."""
    started = time.perf_counter()
    try:
        report = await asyncio.wait_for(agent.answer(request), timeout)
    except TimeoutError:
        report = AgentReport(error="timeout")
    except (EngineError, httpx.HTTPError, KeyError, IndexError, TypeError, ValueError) as error:
        log.warning("request %s goes on without its agent: %s", request.request_id, error)
        report = AgentReport(error="failed")
    return replace(report, seconds=time.perf_counter() - started)


def _wire_messages(request: GenerationRequest) -> list[dict[str, Any]]:
    return [
        {"role": message.role, "content": [wire for part in message.content for wire in _wire_parts(part)]}
        for message in request.messages
    ]


def _wire_parts(part: TextPart | ImagePart | VideoPart) -> list[dict[str, Any]]:
    """A part in OpenAI's terms, which know no videos: a clip goes as its frames."""
    if isinstance(part, TextPart):
        return [{"type": "text", "text": part.text}]
    images = part.frames if isinstance(part, VideoPart) else (part.image,)
    return [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]


def _data_url(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
