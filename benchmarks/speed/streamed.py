"""One streamed question with the times that its client sees, read with as little work as possible."""

import base64
import io
import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
from httpx_sse import EventSource
from PIL.Image import Image


@dataclass
class Streamed:
    """An answer: its text, seconds from sending to the first event, the first text and the end, and what was reported.

    The first event comes with the first token, which need not be text yet: with random weights it often is not.
    """

    text: str = ""
    first_event: float = 0.0
    first_text: float = 0.0
    end: float = 0.0
    completion_tokens: int = 0
    prompt_tokens: int = 0
    stages: dict[str, float] = field(default_factory=dict)


def chat_body(image: Image, question: str, **fields: Any) -> dict[str, Any]:
    """A greedy streaming chat completion about one image."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return {
        "model": "demo",
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": content}],
        **fields,
    }


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> Streamed:
    """Send one chat completion and read it to its end; RuntimeError if the server refuses or breaks off."""
    content = json.dumps(body).encode()
    answer, done = Streamed(), False
    start = time.perf_counter()
    request = client.stream(
        "POST", "/v1/chat/completions", content=content, headers={"Content-Type": "application/json"}
    )
    async with request as response:
        if response.status_code != 200:
            raise RuntimeError((await response.aread()).decode())
        async for event in EventSource(response).aiter_sse():
            if event.data == "[DONE]":
                done = True
                break
            chunk = event.json()
            answer.first_event = answer.first_event or time.perf_counter() - start
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            if report := chunk.get("vision_pruning"):
                answer.stages = report["seconds"]
            if usage := chunk.get("usage"):
                answer.completion_tokens, answer.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
            for choice in chunk["choices"]:
                done = done or bool(choice.get("finish_reason"))  # `transformers serve` sends no [DONE]
                text = choice["delta"].get("content")
                if text and not answer.first_text:
                    answer.first_text = time.perf_counter() - start
                answer.text += text or ""
    answer.end = time.perf_counter() - start
    if not done:
        raise RuntimeError("the stream ended before its end")
    return answer


def http_client(url: str, connections: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=300, limits=httpx.Limits(max_connections=connections))
