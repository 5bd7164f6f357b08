"""Throughput of many streams at once against one at a time, on the language-model part.

    python benchmarks/batching.py                                  32 streams, the demo model in a server of its own
    python benchmarks/batching.py --streams 16 --tokens 100 --keep 16
    python benchmarks/batching.py --threads 1                      options for the server: torch threads
    python benchmarks/batching.py --url http://127.0.0.1:8000

Each image is asked about once beforehand, so that its features are cached and the tower does not run; every answer has
exactly --tokens tokens (ignore_eos). The same requests are sent one after the other and all at once, in turn, --rounds
times; rows are medians over the rounds. Every answer must equal the one that its request got alone: differences are
printed and make the exit status 1. A run takes about a minute.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from demo_model.scenes import make_scene
from demo_model.splits import FIRST_SEED
from speed.local_server import local_server
from speed.streamed import Streamed, ask, chat_body, http_client
from tqdm import tqdm

QUESTIONS = ("Describe the image.", "How many objects are there?", "What color is the circle?", "Where is the square?")
SCENES = 8


@dataclass(frozen=True)
class Round:
    """One pass over all requests: wall seconds, and the answers in the order of the requests."""

    seconds: float
    answers: list[Streamed]

    @property
    def tokens_per_second(self) -> float:
        return sum(answer.completion_tokens for answer in self.answers) / self.seconds


def bodies(streams: int, tokens: int, keep: int) -> list[dict[str, Any]]:
    """Requests that differ in scene and question; consecutive ones are about different scenes."""
    scenes = [make_scene(FIRST_SEED["tuning"] + number).image for number in range(SCENES)]
    return [
        chat_body(
            scenes[number % SCENES],
            QUESTIONS[number // SCENES % len(QUESTIONS)],
            max_tokens=tokens,
            ignore_eos=True,
            vision_pruning={"keep_tokens": keep},
        )
        for number in range(streams)
    ]


async def measure(url: str, requests: Sequence[dict[str, Any]], rounds: int) -> tuple[list[Round], list[Round]]:
    """Rounds one at a time, and rounds all at once."""
    alone, together = [], []
    async with http_client(url, len(requests)) as client:
        await asyncio.gather(*(ask(client, {**body, "max_tokens": 8}) for body in requests))
        for _ in tqdm(range(rounds), unit="round"):
            start = time.perf_counter()
            answers = [await ask(client, body) for body in requests]
            alone.append(Round(time.perf_counter() - start, answers))
            start = time.perf_counter()
            answers = list(await asyncio.gather(*(ask(client, body) for body in requests)))
            together.append(Round(time.perf_counter() - start, answers))
    return alone, together


def table(alone: Sequence[Round], together: Sequence[Round]) -> str:
    lines = ["| streams | tokens/s | seconds | first text ms, median |", "|---|---|---|---|"]
    for name, rounds in [("1", alone), (str(len(together[0].answers)), together)]:
        rate = statistics.median(one.tokens_per_second for one in rounds)
        seconds = statistics.median(one.seconds for one in rounds)
        first = statistics.median(answer.first_text for one in rounds for answer in one.answers) * 1000
        lines.append(f"| {name} | {rate:.0f} | {seconds:.2f} | {first:.0f} |")
    ratios = [many.tokens_per_second / one.tokens_per_second for one, many in zip(alone, together, strict=True)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} rounds"
    return "\n".join(
        [*lines, "", f"Throughput together: {statistics.median(ratios):.2f} times that of one at a time ({spread})."]
    )


def differences(alone: Sequence[Round], together: Sequence[Round]) -> list[str]:
    """Every answer that is not the one its request got in the first round alone."""
    expected = [(answer.text, answer.completion_tokens) for answer in alone[0].answers]
    found = []
    for one in (*alone, *together):
        for number, answer in enumerate(one.answers):
            if (answer.text, answer.completion_tokens) != expected[number]:
                found.append(f"request {number}: {answer.text!r} is not {expected[number][0]!r}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running server, instead of one of its own")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=200, help="tokens of every answer (default: 200)")
    parser.add_argument("--keep", type=int, default=64, help="vision tokens kept of every image (default: 64)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", help="torch threads of the server that is started")
    arguments = parser.parse_args(argv)
    requests = bodies(arguments.streams, arguments.tokens, arguments.keep)
    options = ["--threads", arguments.threads] if arguments.threads else []
    with nullcontext(arguments.url) if arguments.url else local_server(options) as url:
        alone, together = asyncio.run(measure(url, requests, arguments.rounds))
    print(table(alone, together))
    wrong = differences(alone, together)
    answers = len(requests) * 2 * arguments.rounds
    print(f"{answers - len(wrong)} of {answers} answers equal the ones given one at a time.")
    print("\n".join(wrong), end="")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
