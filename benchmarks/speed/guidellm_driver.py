"""Runs guidellm for the load benchmark, in guidellm's own environment: one measurement per line of standard input.

A line is a JSON object, guidellm's `spec`; the answer is a line of standard output: a list with one object per request.
The process stays for all measurements of a run, since importing guidellm takes longer than many of them.
"""

import asyncio
import hashlib
import json
import os
import sys
from typing import Any


def record(request: Any, outcome: str) -> dict[str, Any]:
    """What the benchmark keeps of one request. Seconds; `image` is the hash of the image's URL, to find its answer."""
    sent = json.loads(request.request_args or "{}").get("body") or {}
    parts = [part for message in sent.get("messages", []) for part in message["content"]]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    first, gap = request.time_to_first_token_ms, request.inter_token_latency_ms
    return {
        "outcome": outcome,
        "started": request.request_start_time,
        "ended": request.request_end_time,
        "first_token": None if first is None else first / 1e3,
        "inter_token": None if gap is None else gap / 1e3,
        # Servers count image tokens among the prompt tokens, and guidellm adds them once more.
        "prompt_tokens": request.input_metrics.text_tokens or 0,
        "output_tokens": request.output_tokens or 0,
        "text": request.output or "",
        "error": request.info.error,
        "question": next((part["text"] for part in parts if part["type"] == "text"), ""),
        "image": hashlib.sha256("".join(urls).encode()).hexdigest(),
    }


async def measure(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """One guidellm benchmark of one strategy, as its requests' records."""
    from guidellm.benchmark.entrypoints import benchmark_generative_text
    from guidellm.schemas.benchmark.entrypoints import BenchmarkScenario

    report, _ = await benchmark_generative_text(BenchmarkScenario(spec=spec), progress=False)
    requests = report.benchmarks[0].requests
    outcomes = {"ok": requests.successful, "error": requests.errored, "unfinished": requests.incomplete}
    return [record(request, outcome) for outcome, group in outcomes.items() for request in group or []]


def main() -> None:
    # Whatever guidellm prints goes to standard error; the answers have the original standard output to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(asyncio.run(measure(json.loads(line)))), file=answers, flush=True)


if __name__ == "__main__":
    main()
