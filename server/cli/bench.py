"""Measure a running server: time to first token and throughput, unpruned and with budgets, in one run.

For each concurrency, every budget in turn gets the same number of requests in a closed loop: as many at once as the
concurrency says, the next one as soon as one is answered. Every answer has exactly --max-tokens tokens. Every picture
is new to the server (one pixel differs), unless --cached sends the same one again and again. Times are this client's;
run it on another machine than the server, or they share its cores. Examples:

    covervlm bench --url http://127.0.0.1:8000
    covervlm bench --keep all,192,64,32 --concurrency 1,8,32 --requests 100 --image photo.jpg
"""

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from covervlm.clients import APIConnectionError, APIError, AsyncClient
from covervlm.clients.progress import progress_bar
from covervlm.server.cli.arguments import count
from covervlm.server.cli.asked_server import unreachable
from covervlm.server.cli.closed_loop import Cell, Measured, Question, measure
from covervlm.server.cli.problems import USAGE, CommandError

MOST_REQUESTS = 100_000
WARM_UP = 2
_EXAMPLE = Path(__file__).parents[1] / "demo" / "scenes" / "color.png"
_HEAD = (
    "| vision tokens | at once | answered | failed | first token ms p50 | p95 | answer ms p50 | p95 "
    "| requests/s | tokens/s | prompt tokens |"
)


def _keeps(text: str) -> list[int | None]:
    return [None if part.strip() == "all" else count(part) for part in text.split(",")]


def _counts(text: str) -> list[int]:
    return [count(part) for part in text.split(",")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="the server (default: COVERVLM_BASE_URL, or http://127.0.0.1:8000)")
    parser.add_argument("--api-key", metavar="KEY", help="its key (default: COVERVLM_API_KEY)")
    parser.add_argument("--model", help="(default: the one that is served)")
    parser.add_argument(
        "--keep", type=_keeps, default=[None, 64], metavar="N,...", help="budgets; all is unpruned (all,64)"
    )
    parser.add_argument("--method", help="pruning method (default: the server's)")
    parser.add_argument("--concurrency", type=_counts, default=[1, 8], metavar="C,...", help="requests at once (1,8)")
    parser.add_argument("--requests", type=count, default=32, metavar="N", help="requests for each row (32)")
    parser.add_argument("--max-tokens", type=count, default=32, metavar="N", help="tokens of every answer (32)")
    parser.add_argument(
        "--image", type=Path, metavar="FILE", help="the picture to ask about (default: an example scene)"
    )
    parser.add_argument("--question", default="Describe the image.")
    parser.add_argument("--cached", action="store_true", help="ask about the very same picture every time")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="seconds without news (120)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> None:
    cells = [Cell(keep, at_once) for at_once in arguments.concurrency for keep in arguments.keep]
    if len(cells) * arguments.requests > MOST_REQUESTS:
        raise CommandError(f"one run sends {MOST_REQUESTS} requests at most; ask for fewer rows or --requests", USAGE)
    try:
        image = Image.open(arguments.image or _EXAMPLE).convert("RGB")
    except OSError as error:
        raise CommandError(f"{arguments.image}: {error.strerror or error}") from None
    question = Question(image, arguments.question, arguments.max_tokens, arguments.cached)
    try:
        model, measured = asyncio.run(_measure(arguments, question, cells))
    except APIConnectionError as error:
        raise CommandError(unreachable(arguments.url, error)) from None
    except APIError as error:
        raise CommandError(str(error)) from None
    except ValueError as error:
        raise CommandError(str(error).replace("base_url", "--url"), USAGE) from None
    rows = [
        {"keep_tokens": cell.keep, "concurrency": cell.concurrency, **one.report()}
        for cell, one in zip(cells, measured, strict=True)
    ]
    if arguments.json:
        print(
            json.dumps({"model": model, "max_tokens": arguments.max_tokens, "cached": arguments.cached, "rows": rows})
        )
    else:
        print(_table(rows))
    errors = [error for one in measured for error in one.errors]
    if errors:
        raise CommandError(f"{len(errors)} requests failed, the first one so: {errors[0]}")


async def _measure(arguments: argparse.Namespace, question: Question, cells: list[Cell]) -> tuple[str, list[Measured]]:
    """The model's name, and what came of each cell."""
    most = max(arguments.concurrency)
    limits = httpx.Limits(max_connections=most, max_keepalive_connections=most)
    total = len(cells) * arguments.requests
    done = 0
    async with httpx.AsyncClient(timeout=arguments.timeout, limits=limits) as http:
        client = AsyncClient(
            arguments.url, api_key=arguments.api_key, model=arguments.model, retries=0, http_client=http
        )
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
