"""Measure a running server: time to first token and throughput, unpruned and with budgets, in one run.

For each concurrency, every budget gets the same number of requests in a closed loop: as many at once as the concurrency
says, and the next one as soon as one is answered. Every answer has exactly --max-tokens tokens. Every picture is new to
the server (one pixel differs), unless --cached sends the same one every time. Times are those that this client sees;
run it on another machine than the server, or both share its cores. Examples:

    covervlm bench --url http://127.0.0.1:8000
    covervlm bench --keep all,192,64,32 --concurrency 1,8,32 --requests 100 --image photo.jpg
"""

import argparse
import asyncio
import io
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from covervlm.clients import APIError, AsyncClient
from covervlm.clients.jobs import progress_bar
from covervlm.server.cli.arguments import count
from covervlm.server.cli.connect import call_errors, make_client
from covervlm.server.cli.errors import USAGE, CommandError, file_errors
from covervlm.server.demo import example_scenes

MOST_REQUESTS = 100_000
WARM_UP = 2
_EXAMPLE = example_scenes()[0]
_HEAD = (
    "| vision tokens | at once | answered | failed | first token ms p50 | p95 | answer ms p50 | p95 "
    "| requests/s | tokens/s | prompt tokens |"
)


@dataclass(frozen=True)
class Question:
    """What is asked: the same words each time, about a picture that is new to the server unless it is `cached`."""

    image: Image.Image
    text: str
    tokens: int
    cached: bool = False

    def picture(self) -> bytes:
        """A PNG file of the picture; its first pixel has a random color unless it is cached."""
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
    """The measurements of one cell.

    first, whole: seconds to the first piece of text and to the end, one per answer. seconds: of the whole cell.
    """

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def report(self) -> dict[str, Any]:
        """Times in milliseconds, and rates; None where nothing was answered."""
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
    """The smallest value that at least `share` percent of the values do not exceed, in milliseconds."""
    if not seconds:
        return None
    return sorted(seconds)[max(1, math.ceil(len(seconds) * share / 100)) - 1] * 1000


def _keeps(text: str) -> list[int | None]:
    return [None if part.strip() == "all" else count(part) for part in text.split(",")]


def _counts(text: str) -> list[int]:
    return [count(part) for part in text.split(",")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="the server (default: COVERVLM_BASE_URL, or http://127.0.0.1:8000)")
    parser.add_argument("--api-key", metavar="KEY", help="its API key (default: COVERVLM_API_KEY)")
    parser.add_argument("--model", help="the model to ask (default: the one that is served)")
    parser.add_argument("--keep", type=_keeps, default=[None, 64], metavar="N,...", help="budgets (default: all,64)")
    parser.add_argument("--method", help="pruning method (default: the server's)")
    parser.add_argument("--concurrency", type=_counts, default=[1, 8], metavar="C,...", help="in flight (default: 1,8)")
    parser.add_argument("--requests", type=count, default=32, metavar="N", help="requests per row (default: 32)")
    parser.add_argument("--max-tokens", type=count, default=32, metavar="N", help="tokens per answer (default: 32)")
    parser.add_argument("--image", type=Path, metavar="FILE", help="picture to ask about (default: an example scene)")
    parser.add_argument("--question", help="what to ask (default: the example's question, or to describe the picture)")
    parser.add_argument("--cached", action="store_true", help="ask about the same picture every time")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="seconds without data (default: 120)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> None:
    cells = [Cell(keep, at_once) for at_once in arguments.concurrency for keep in arguments.keep]
    if len(cells) * arguments.requests > MOST_REQUESTS:
        raise CommandError(f"one run sends {MOST_REQUESTS} requests at most; use fewer rows or --requests", USAGE)
    with file_errors(arguments.image):
        image = Image.open(arguments.image or _EXAMPLE.path).convert("RGB")
    text = arguments.question or ("Describe the image." if arguments.image else _EXAMPLE.question)
    question = Question(image, text, arguments.max_tokens, arguments.cached)
    with call_errors(arguments.url):
        model, measured = asyncio.run(_measure(arguments, question, cells))
    rows = [
        {"keep_tokens": cell.keep, "concurrency": cell.concurrency, **one.report()}
        for cell, one in zip(cells, measured, strict=True)
    ]
    if arguments.json:
        asked = {"model": model, "max_tokens": arguments.max_tokens, "cached": arguments.cached}
        print(json.dumps({**asked, "rows": rows}))
    else:
        print(_table(rows))
    errors = [error for one in measured for error in one.errors]
    if errors:
        raise CommandError(f"{len(errors)} requests failed, the first with: {errors[0]}")


async def _measure(arguments: argparse.Namespace, question: Question, cells: list[Cell]) -> tuple[str, list[Measured]]:
    """The model's name, and the measurements of each cell."""
    most = max(arguments.concurrency)
    limits = httpx.Limits(max_connections=most, max_keepalive_connections=most)
    total = len(cells) * arguments.requests
    done = 0
    async with httpx.AsyncClient(timeout=arguments.timeout, limits=limits) as http:
        client = make_client(AsyncClient, arguments, model=arguments.model, retries=0, http_client=http)
        model = arguments.model or (await client.models())[0].id
        for keep in arguments.keep:
            warm = await measure(client, question, Cell(keep, 1), WARM_UP, method=arguments.method)
            if warm.errors:
                raise CommandError(warm.errors[0])
        with progress_bar() as move:

            def answered() -> None:
                nonlocal done
                done += 1
                move(done / total, f"{done} of {total} requests")

            measured = [
                await measure(client, question, cell, arguments.requests, method=arguments.method, answered=answered)
                for cell in cells
            ]
    return model, measured


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
    # Made beforehand: encoding a picture would delay what the event loop measures meanwhile.
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


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [_HEAD, "|" + "---|" * (_HEAD.count("|") - 1)]
    for row in rows:
        first, whole = row["first_token_ms"], row["answer_ms"]
        times = [first["p50"], first["p95"], whole["p50"], whole["p95"]]
        cells = ["all" if row["keep_tokens"] is None else str(row["keep_tokens"])]
        cells += [str(row[name]) for name in ("concurrency", "answered", "failed")]
        cells += [_cell(value, ".1f") for value in times]
        cells += [_cell(row["requests_per_second"], ".2f"), _cell(row["tokens_per_second"], ".1f")]
        cells += [_cell(row["prompt_tokens"], ".0f")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
