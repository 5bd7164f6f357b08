"""Time to first token of a chat's second turn about one image, with the memory of read prompts and without.

    python benchmarks/chats.py                              random weights whose language model dominates
    python benchmarks/chats.py --chats 10 --threads 1
    python benchmarks/chats.py --model demo

Two servers side by side, one with --prefix-cache-bytes 0; the same chats go to both in turn, each about a new image.
The second turn repeats the first, with the server's own answer, and asks another question; the words of the first
question guide the selection. Rows are medians, the ratio is that of each chat's own pair of times. A run takes a few
minutes; the machine should do nothing else.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from demo_model.scenes import make_scene
from demo_model.splits import FIRST_SEED
from speed.local_server import local_server
from speed.random_llava import save_random_llava
from speed.streamed import Streamed, ask, chat_body, http_client
from tqdm import tqdm

FIRST, SECOND = "What is in this image, and what is its color?", "And how many objects are there?"
BUDGETS: dict[str, dict[str, Any]] = {
    "unpruned": {"method": "none"},
    "mmtok 192": {"keep_tokens": 192, "guide": "first_user"},
    "mmtok 64": {"keep_tokens": 64, "guide": "first_user"},
}
WARM_UP = 1
VARIANTS = ("reads all", "remembers")


async def chat(client: httpx.AsyncClient, seed: int, pruning: dict[str, Any], tokens: int) -> tuple[Streamed, Streamed]:
    """Both turns' answers."""
    fields = {"max_tokens": tokens, "ignore_eos": True, "vision_pruning": pruning}
    opening = chat_body(make_scene(seed).image, FIRST, **fields)
    first = await ask(client, opening)
    history = [{"role": "assistant", "content": first.text}, {"role": "user", "content": SECOND}]
    return first, await ask(client, {**opening, "messages": [*opening["messages"], *history]})


async def measure(
    urls: Sequence[str], chats: int, tokens: int
) -> dict[tuple[str, str], list[tuple[Streamed, Streamed]]]:
    """Chats by budget and server."""
    found: dict[tuple[str, str], list[tuple[Streamed, Streamed]]] = {}
    seed = FIRST_SEED["tuning"]
    async with http_client(urls[0], 1) as reads, http_client(urls[1], 1) as remembers:
        for number in tqdm(range(WARM_UP + chats), unit="chat"):
            for budget, pruning in BUDGETS.items():
                seed += 1
                for variant, client in zip(VARIANTS, (reads, remembers), strict=True):
                    both = await chat(client, seed, pruning, tokens)
                    if number >= WARM_UP:
                        found.setdefault((budget, variant), []).append(both)
    return found


def table(found: dict[tuple[str, str], list[tuple[Streamed, Streamed]]]) -> str:
    lines = [
        "| vision tokens | prompt tokens, second | first turn ms | second turn ms, all read | remembered | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for budget in BUDGETS:
        reads, remembers = (found[budget, variant] for variant in VARIANTS)
        assert [two.text for _, two in reads] == [two.text for _, two in remembers], "the answers differ"
        ratios = sorted(
            mine.first_event / theirs.first_event for (_, theirs), (_, mine) in zip(reads, remembers, strict=True)
        )
        columns = [
            [one.first_event for one, _ in reads],
            *([two.first_event for _, two in row] for row in (reads, remembers)),
        ]
        cells = [f"{statistics.median(column) * 1e3:,.0f}" for column in columns]
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        lines.append(f"| {budget} | {reads[0][1].prompt_tokens} | {' | '.join(cells)} | {spread} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random", help="demo, a checkpoint, or random weights (default)")
    parser.add_argument("--chats", type=int, default=7, help="chats per row (default: 7)")
    parser.add_argument("--tokens", type=int, default=8, help="tokens of every answer (default: 8)")
    parser.add_argument("--threads", help="torch threads of the servers")
    arguments = parser.parse_args(argv)
    options = ["--threads", arguments.threads] if arguments.threads else []
    with ExitStack() as stack:
        model = arguments.model
        if model == "random":
            model = str(save_random_llava(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        served = (
            ["--clip-model", "none", *options]
            if model == "demo"
            else ["--model", model, "--clip-model", "none", *options]
        )
        urls = [
            stack.enter_context(local_server([*served, "--served-model-name", "demo", *extra]))
            for extra in (["--prefix-cache-bytes", "0"], [])
        ]
        print(table(asyncio.run(measure(urls, arguments.chats, arguments.tokens))))
    print(f"\nLoad average {os.getloadavg()[0]:.1f}.")


if __name__ == "__main__":
    main()
