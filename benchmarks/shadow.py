"""Time to first token with and without --shadow, side by side: comparing answers must not make anybody wait.

    python benchmarks/shadow.py                         the demo model, two servers, one thread each
    python benchmarks/shadow.py --pause 0.2             less quiet between two requests, so that more of them interrupt
    python benchmarks/shadow.py --requests 200 --threads 2

Two servers with the same options, one of which compares every pruned answer with the unpruned model's (--shadow 1, a
hundred times more than one would). They are asked the same questions in turn, which goes first alternating, and every
image is new to both. Each is first asked another question, and then left alone for 0 to twice --pause seconds: the
comparing server then reads its last answer again, and the question that is timed meets it at any moment of that. The
other one is asked only when the comparing one has nothing left to do, since both share a processor.

Printed are medians and upper tenths of the client's time to the first text, and the median of the pairs' ratios with a
95 % interval from a sign test. A run of 60 pairs takes about two minutes on an idle machine; on a busy one its ratios
say nothing.
"""

import argparse
import asyncio
import random
import statistics
from collections.abc import Sequence
from math import comb

import httpx
from demo_model.scenes import make_scene
from demo_model.splits import FIRST_SEED
from speed.local_server import local_server
from speed.streamed import ask, chat_body, http_client
from tqdm import tqdm

QUESTION = "Describe the image."
WARM_UP = 4


async def shadows(client: httpx.AsyncClient) -> dict[str, float]:
    """How many answers wait to be compared, and what became of those drawn, from the server's metrics."""
    lines = (await client.get("/metrics")).text.splitlines()
    return {
        name.removeprefix("covervlm_shadow_"): float(value)
        for name, _, value in (line.rpartition(" ") for line in lines)
        if name in ("covervlm_shadow_waiting", "covervlm_shadow_bytes")
        or name.startswith("covervlm_shadow_requests_total")
    }


async def quiet(client: httpx.AsyncClient) -> None:
    while (await shadows(client))["bytes"]:
        await asyncio.sleep(0.02)


async def measure(urls: dict[str, str], pairs: int, pause: float, keep: int) -> tuple[dict[str, list[float]], str]:
    """Seconds to the first text by server, in pairs; and what became of the answers that were drawn."""
    seconds: dict[str, list[float]] = {name: [] for name in urls}
    draw, seed = random.Random(0), FIRST_SEED["tuning"]
    async with http_client(urls["without"], 1) as without, http_client(urls["with"], 1) as comparing:
        clients = {"without": without, "with": comparing}
        for pair in tqdm(range(WARM_UP + pairs), unit="pair"):
            body = chat_body(
                make_scene(seed + pair).image, QUESTION, max_tokens=24, vision_pruning={"keep_tokens": keep}
            )
            order = ["with", "without"] if pair % 2 else ["without", "with"]
            wait = draw.uniform(0, 2 * pause)
            for name in order:
                if name == "without":
                    await quiet(comparing)
                await provoke(clients[name], seed + 10**5 + pair, keep)
                await asyncio.sleep(wait)
                answer = await ask(clients[name], body)
                if pair >= WARM_UP:
                    seconds[name].append(answer.first_text)
        await quiet(comparing)
        outcomes = {
            name: int(value) for name, value in (await shadows(comparing)).items() if "outcome" in name and value
        }
    return seconds, ", ".join(f"{name.split(chr(34))[1]} {count}" for name, count in outcomes.items())


async def provoke(client: httpx.AsyncClient, seed: int, keep: int) -> None:
    """Give a comparing server something to compare, and the other one the same to do."""
    await ask(client, chat_body(make_scene(seed).image, QUESTION, max_tokens=24, vision_pruning={"keep_tokens": keep}))


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """A median's 95 % interval, from the sign test: no assumption about how times are distributed."""
    ordered, count = sorted(ratios), len(ratios)
    below, rank = 0.0, 0
    while below + comb(count, rank) / 2**count <= 0.025:
        below += comb(count, rank) / 2**count
        rank += 1
    return ordered[max(0, rank - 1)], ordered[min(count - 1, count - rank)]


def table(seconds: dict[str, list[float]]) -> str:
    lines = ["| --shadow | first token ms | p90 | p99 |", "|---|---|---|---|"]
    for name, row in seconds.items():
        cuts = statistics.quantiles(row, n=100, method="inclusive")
        lines.append(
            f"| {name} | {statistics.median(row) * 1000:.1f} | {cuts[89] * 1000:.1f} | {cuts[98] * 1000:.1f} |"
        )
    ratios = [one / other for one, other in zip(seconds["with"], seconds["without"], strict=True)]
    low, high = interval(ratios)
    said = (
        f"Ratio with / without: median {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f}), {len(ratios)} pairs."
    )
    return "\n".join([*lines, "", said])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=60, help="pairs (default: 60)")
    parser.add_argument("--pause", type=float, default=0.3, help="mean seconds before a request (default: 0.3)")
    parser.add_argument("--keep", type=int, default=64, help="vision tokens kept (default: 64)")
    parser.add_argument("--threads", default="1", help="torch threads of each server (default: 1)")
    parser.add_argument("--model", default="demo")
    arguments = parser.parse_args(argv)
    options = ["--model", arguments.model, "--threads", arguments.threads, "--clip-model", "none"]
    with local_server(options) as without, local_server([*options, "--shadow", "1"]) as comparing:
        urls = {"without": without, "with": comparing}
        seconds, outcomes = asyncio.run(measure(urls, arguments.requests, arguments.pause, arguments.keep))
    print(table(seconds))
    print(f"Answers drawn: {outcomes}.")


if __name__ == "__main__":
    main()
