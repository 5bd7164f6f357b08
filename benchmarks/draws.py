"""Time to draw a batch's next tokens: all rows at once, beside transformers' warpers row by row.

    python benchmarks/draws.py                     32 rows, 32,000 tokens
    python benchmarks/draws.py --rows 8 --vocabulary 150000 --threads 1

Logits are random with a spread as language models have it (a few likely tokens, a long tail); both draw from the same
numbers, in turn, and rows are medians over the rounds. Takes seconds.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from covervlm.server.core.generation import SamplingParams
from covervlm.server.engines.embedded.sampling import Sampler, choose

CASES = {
    "temperature": SamplingParams(temperature=0.7, seed=1),
    "top_p 0.9": SamplingParams(temperature=0.7, top_p=0.9, seed=1),
    "top_k 40": SamplingParams(temperature=0.7, top_k=40, seed=1),
    "min_p 0.05": SamplingParams(temperature=0.7, min_p=0.05, seed=1),
    "top_p 0.9 of a flat distribution": SamplingParams(temperature=50.0, top_p=0.9, seed=1),
}


def row_by_row(params: SamplingParams, generators: Sequence[torch.Generator]) -> Callable[[Tensor], object]:
    warpers = [TemperatureLogitsWarper(params.temperature)]
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    if params.top_k > 0:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    ids = torch.empty(1, 0, dtype=torch.long)

    def run(logits: Tensor) -> list[int]:
        tokens = []
        for row, generator in zip(logits, generators, strict=True):
            scores = row[None]
            for warper in warpers:
                scores = warper(ids, scores)
            tokens.append(int(torch.multinomial(scores.softmax(-1), 1, generator=generator)))
        return tokens

    return run


def seconds(call: Callable[[Tensor], object], logits: Tensor) -> float:
    started = time.perf_counter()
    call(logits)
    return time.perf_counter() - started


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    logits = torch.randn(arguments.rows, arguments.vocabulary, generator=torch.Generator().manual_seed(0)) * 3
    print("| parameters | row by row ms | batch ms | ratio |\n|---|---|---|---|")
    for name, params in CASES.items():
        samplers = {row: Sampler(params, (), choice=row) for row in range(arguments.rows)}
        rows = row_by_row(params, [torch.Generator().manual_seed(row) for row in samplers])
        times = [
            (seconds(rows, logits), seconds(lambda logits, samplers=samplers: choose(samplers, logits), logits))
            for _ in range(arguments.rounds + 2)
        ][2:]
        slow, fast = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
        print(f"| {name} | {slow:.1f} | {fast:.1f} | {slow / fast:.1f} |")


if __name__ == "__main__":
    main()
