"""Time to first token of a new image, pruned and unpruned, with its stages.

    python benchmarks/latency.py                           the demo model in a server of its own
    python benchmarks/latency.py --keep 64 --images 100    another budget, more images
    python benchmarks/latency.py --threads 1               options for the server: torch threads
    python benchmarks/latency.py --url http://127.0.0.1:8000

One request at a time, pruned and unpruned in turn in one run, every image new to the server: nothing is cached. The
client's time runs from sending the request to the first text. Stages are the server's own, from the response; "rest"
is what they do not account for: HTTP, JSON, base64, and sending the first token. Rows are medians with the 10th and
90th percentile of the total. A run takes well under a minute.
"""

import argparse
import asyncio
import statistics
from collections.abc import Sequence
from contextlib import nullcontext

from demo_model.scenes import make_scene
from demo_model.splits import FIRST_SEED
from speed.local_server import local_server
from speed.streamed import Streamed, ask, chat_body, http_client
from tqdm import tqdm

STAGES = ("media", "preprocess", "queue", "tower", "selection", "prefill")
QUESTION = "How many objects are there?"
WARM_UP = 4


async def measure(url: str, images: int, keep: int, method: str) -> dict[str, list[Streamed]]:
    """Answers by row: every row gets the same number of new images, in turn."""
    pruning = {"unpruned": {"method": "none"}, f"{method} {keep}": {"method": method, "keep_tokens": keep}}
    answers: dict[str, list[Streamed]] = {name: [] for name in pruning}
    seed = FIRST_SEED["tuning"]
    async with http_client(url, 1) as client:
        for number in tqdm(range(WARM_UP + images), unit="image"):
            for name, fields in pruning.items():
                body = chat_body(make_scene(seed).image, QUESTION, max_tokens=2, vision_pruning=fields)
                answer = await ask(client, body)
                seed += 1
                if number >= WARM_UP:
                    answers[name].append(answer)
    return answers


def table(answers: dict[str, list[Streamed]]) -> str:
    """Milliseconds per row, medians, and the ratio of the totals."""
    lines = [
        "| vision tokens | first token ms | 10-90 % | " + " | ".join(STAGES) + " | rest | prompt tokens |",
        "|---|" + "---|" * (len(STAGES) + 4),
    ]
    for name, row in answers.items():
        total = [answer.first_text * 1000 for answer in row]
        stages = [statistics.median(answer.stages.get(stage, 0.0) * 1000 for answer in row) for stage in STAGES]
        rest = statistics.median((answer.first_text - sum(answer.stages.values())) * 1000 for answer in row)
        tenths = statistics.quantiles(total, n=10)
        cells = [f"{statistics.median(total):.1f}", f"{tenths[0]:.1f}-{tenths[-1]:.1f}"]
        cells += [f"{stage:.1f}" for stage in stages]
        lines.append(f"| {name} | {' | '.join(cells)} | {rest:.1f} | {row[0].prompt_tokens} |")
    unpruned, pruned = (statistics.median(answer.first_text for answer in row) for row in answers.values())
    prefill = [statistics.median(answer.stages["prefill"] for answer in row) for row in answers.values()]
    ratios = f"{unpruned / pruned:.2f} times sooner to the first token, {prefill[0] / prefill[1]:.2f} times to prefill"
    return "\n".join([*lines, "", f"Pruned: {ratios} ({len(next(iter(answers.values())))} images a row)."])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running server, instead of one of its own")
    parser.add_argument("--keep", type=int, default=64, help="vision tokens kept (default: 64)")
    parser.add_argument("--method", default="mmtok")
    parser.add_argument("--images", type=int, default=50, help="new images per row (default: 50)")
    parser.add_argument("--threads", help="torch threads of the server that is started")
    arguments = parser.parse_args(argv)
    options = ["--threads", arguments.threads] if arguments.threads else []
    with nullcontext(arguments.url) if arguments.url else local_server(options) as url:
        print(table(asyncio.run(measure(url, arguments.images, arguments.keep, arguments.method))))


if __name__ == "__main__":
    main()
