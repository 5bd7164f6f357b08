"""Requests in a closed loop against a running server, and what their client sees of each."""

import asyncio
import io
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image

from covervlm.clients import APIError, AsyncClient


@dataclass(frozen=True)
class Question:
    """What is asked: the same words each time, about a picture that is new to the server unless it is `cached`."""

    image: Image
    text: str
    tokens: int
    cached: bool = False

    def picture(self) -> bytes:
        """A PNG file of the picture; its first pixel is drawn by lot unless it is cached."""
        image = self.image.copy()
        if not self.cached:
            image.putpixel((0, 0), tuple(random.randbytes(3)))
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        return file.getvalue()


@dataclass(frozen=True)
class Cell:
    """One row of the table. keep: vision tokens, None for all."""

    keep: int | None
    concurrency: int


@dataclass
class Measured:
    """What came of a cell's requests. first, whole: seconds, one per answer. seconds: from the first to the last."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def report(self) -> dict[str, Any]:
        """Milliseconds and rates; None where nothing was answered."""
        done = len(self.whole)
        return {
            "answered": done,
            "failed": len(self.errors),
            "first_token_ms": {f"p{p}": percentile(self.first, p) for p in (50, 95, 99)},
            "answer_ms": {f"p{p}": percentile(self.whole, p) for p in (50, 95, 99)},
            "requests_per_second": done / self.seconds if done else None,
            "tokens_per_second": self.tokens / self.seconds if done else None,
            "prompt_tokens": self.prompt_tokens / done if done else None,
        }


def percentile(seconds: Sequence[float], share: int) -> float | None:
    """The smallest of the values, in milliseconds, that at least `share` percent of them do not exceed."""
    if not seconds:
        return None
    return sorted(seconds)[max(1, math.ceil(len(seconds) * share / 100)) - 1] * 1000


async def measure(
    client: AsyncClient,
    question: Question,
    cell: Cell,
    requests: int,
    *,
    method: str | None = None,
    answered: Callable[[], None] = lambda: None,
) -> Measured:
    """Send `requests` requests, `cell.concurrency` at a time; `answered` is called after each."""
    measured = Measured()
    # Made ahead: encoding a picture would delay what else the event loop has to notice.
    pictures = await asyncio.to_thread(lambda: [question.picture() for _ in range(requests)])
    options: dict[str, Any] = {"method": method, "keep_tokens": cell.keep, "temperature": 0}
    if cell.keep is None:
        options |= {"method": "none"}
    options |= {"max_tokens": question.tokens, "extra_body": {"ignore_eos": True}}

    async def worker() -> None:
        while pictures:
            await _ask(client, pictures.pop(), question.text, options, measured)
            answered()

    start = time.perf_counter()
    async with asyncio.TaskGroup() as workers:
        for _ in range(min(cell.concurrency, requests)):
            workers.create_task(worker())
    measured.seconds = time.perf_counter() - start
    return measured


async def _ask(client: AsyncClient, picture: bytes, text: str, options: dict[str, Any], measured: Measured) -> None:
    start = time.perf_counter()
    first = 0.0
    try:
        async with client.stream(picture, text, **options) as stream:
            async for _ in stream:
                first = first or time.perf_counter() - start
    except APIError as error:
        measured.errors.append(str(error))
        return
    measured.first.append(first)
    measured.whole.append(time.perf_counter() - start)
    measured.tokens += stream.answer.usage.completion_tokens
    measured.prompt_tokens += stream.answer.usage.prompt_tokens
