"""The vLLM engine in closed loops: unpruned, MMTok at 192 and 64 tokens, and vision coverage at 64, side by side.

    python benchmarks/vllm_load.py --python .venv-vllm/bin/python                     the demo model
    python benchmarks/vllm_load.py --python .venv-vllm/bin/python --model random      a language model that dominates

One server answers all four, with a new image in every request and then with one image and other questions. Each round
measures all four in turn; the tables give the median of the rounds, and of the ratios to the same round's unpruned
load, lowest and highest in brackets. Every answer has exactly --tokens tokens, and any error ends the program. Unlike
in `load.py`, the client is a few lines of asyncio; a round on the demo model takes about three minutes on two cores.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speed.local_server import local_server
from speed.peers import VLLM_ON_ALL_CORES
from speed.random_llava import save_random_llava
from speed.streamed import Streamed, ask, http_client
from speed.workload import IMAGES, Asked, workload

RANDOM = Path("results/random-llava")
VARIANTS = {
    "unpruned": {"method": "none"},
    "mmtok 192": {"method": "mmtok", "keep_tokens": 192},
    "mmtok 64": {"method": "mmtok", "keep_tokens": 64},
    "vision_coverage 64": {"method": "vision_coverage", "keep_tokens": 64},
}
HEADER = "| at once | vision tokens | requests/s | of unpruned | first token s, median | 95 % | prompt tokens |"


@dataclass(frozen=True)
class Run:
    """One load on one variant."""

    answers: list[Streamed]
    seconds: float

    @property
    def requests_per_second(self) -> float:
        return len(self.answers) / self.seconds


def row(name: str, streams: int, runs: Sequence[Run], baselines: Sequence[Run]) -> str:
    """A line of the table: one variant's runs, and the unpruned ones of the same rounds."""
    first = sorted(answer.first_event for run in runs for answer in run.answers)
    late = first[round(0.95 * (len(first) - 1))]
    prompt = statistics.median(answer.prompt_tokens for run in runs for answer in run.answers)
    rates = [run.requests_per_second for run in runs]
    ratios = [rate / base.requests_per_second for rate, base in zip(rates, baselines, strict=True)]
    spread = f" ({min(ratios):.2f}-{max(ratios):.2f})" if min(ratios) < max(ratios) else ""
    times = f"{statistics.median(first):.2f} | {late:.2f}"
    rate = f"{statistics.median(rates):.2f} | {statistics.median(ratios):.2f}{spread}"
    return f"| {streams} | {name} | {rate} | {times} | {prompt:.0f} |"


def body(asked: Asked, pruning: dict[str, Any], tokens: int) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": asked.image}}, {"type": "text", "text": asked.question}]
    return {
        "model": "model",
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": tokens,
        "ignore_eos": True,
        "vision_pruning": pruning,
        "messages": [{"role": "user", "content": content}],
    }


async def closed_loop(url: str, bodies: Sequence[dict[str, Any]], streams: int) -> Run:
    """All requests, `streams` of them at any time."""
    waiting = iter(bodies)
    answers: list[Streamed] = []

    async def stream() -> None:
        for one in waiting:
            answers.append(await ask(client, one))

    async with http_client(url, streams) as client:
        start = time.perf_counter()
        await asyncio.gather(*(stream() for _ in range(streams)))
        return Run(answers, time.perf_counter() - start)


async def measure(url: str, arguments: argparse.Namespace) -> None:
    number = 0
    for pruning in VARIANTS.values():
        await closed_loop(url, [body(one, pruning, 2) for one in workload("new", 1, number)], 1)
    for images in arguments.images:
        print(f"\n{images} image\n\n{HEADER}\n{'|---' * 7}|", flush=True)
        for streams in arguments.concurrency:
            runs: dict[str, list[Run]] = {name: [] for name in VARIANTS}
            for _ in range(arguments.rounds):
                for name, pruning in VARIANTS.items():
                    number += 1
                    asked = workload(images, max(2, streams) * arguments.requests_per_stream, number)
                    bodies = [body(one, pruning, arguments.tokens) for one in asked]
                    runs[name].append(await closed_loop(url, bodies, streams))
            for name in VARIANTS:
                print(row(name, streams, runs[name], runs["unpruned"]), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="the interpreter of the environment that holds vLLM")
    parser.add_argument("--images", choices=IMAGES, nargs="*", default=IMAGES)
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--model", choices=["demo", "random"], default="demo")
    parser.add_argument("--requests-per-stream", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1, help="rounds over all four variants (default: 1)")
    parser.add_argument("--tokens", type=int, default=8, help="tokens of every answer (default: 8)")
    arguments = parser.parse_args(argv)
    if arguments.model == "random" and not (RANDOM / "model.safetensors").exists():
        save_random_llava(RANDOM)
    model = "demo" if arguments.model == "demo" else str(RANDOM)
    options = ["--model", model, "--served-model-name", "model", "--engine", "vllm"]
    options += ["--vllm-args=--enforce-eager --max-model-len 1024"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "2", **VLLM_ON_ALL_CORES}
    with local_server(options, arguments.python, environment) as url:
        asyncio.run(measure(url, arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
