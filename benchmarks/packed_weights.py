"""Prefill and decoding steps of the language model alone: weights plain, packed for oneDNN, in int8, and by OpenVINO.

    python benchmarks/packed_weights.py                    random weights: 12 layers, width 1,024
    python benchmarks/packed_weights.py --threads 1 --rounds 9

The models take turns in one process; rows are medians, ratios are those of each round's own times. Logits are compared
too: the largest differences are printed. A run takes two minutes on two cores.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from speed.random_llava import save_random_llava
from torch import Tensor
from tqdm import tqdm

from covervlm.server.engines.embedded.int8_weights import quantize
from covervlm.server.engines.embedded.model_runner import ModelRunner
from covervlm.server.engines.embedded.packed_weights import pack
from covervlm.server.engines.embedded.paged_runner import load_paged
from covervlm.server.engines.embedded.runner import Runner
from covervlm.server.models.checkpoint import Checkpoint, load_adapter

PREFILLS = (78, 206, 590)
BATCHES = (1, 8, 32)
STEPS = 5


def prompt(width: int, length: int) -> tuple[Tensor, Tensor]:
    return torch.randn(length, width, generator=torch.Generator().manual_seed(length)) * 0.02, torch.arange(length)[
        None
    ]


def timed(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    started = time.perf_counter()
    logits = call()
    return time.perf_counter() - started, logits


def cases(runner: Runner, width: int) -> Iterator[tuple[str, float, Tensor]]:
    """Each case's name, seconds, and last logits."""
    for length in PREFILLS:
        seconds, logits = timed(lambda length=length: runner.prefill([prompt(width, length)], [1])[0])
        runner.keep([])
        yield f"prefill of {length} tokens", seconds, logits
    for rows in BATCHES:
        runner.prefill([prompt(width, 100)], [rows])
        steps = [timed(partial(runner.decode, [5] * rows, [100 + at] * rows)) for at in range(STEPS)]
        runner.keep([])
        yield f"a step of {rows}", statistics.median(seconds for seconds, _ in steps), steps[-1][1]


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint (default: random weights)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.model or save_random_llava(Path(folder))
        plain, packed, rounded, other = (load_adapter(Checkpoint(path, "cpu", "float32")) for _ in range(4))
    print(f"{pack(packed)} matrices packed, {quantize(rounded)} in int8, {arguments.threads} threads")
    pack(rounded)
    paged = load_paged(other)
    pack(other)
    runners = (ModelRunner(plain), ModelRunner(packed), ModelRunner(rounded), paged)
    width = plain.embeddings.weight.shape[1]
    times: dict[str, list[tuple[float, ...]]] = {}
    off = [0.0] * 3
    for number in tqdm(range(arguments.rounds + 1), unit="round"):
        for row in zip(*(cases(runner, width) for runner in runners), strict=True):
            (name, _, expected), *others = row
            off = [
                max(most, float((got - expected).abs().max())) for most, (_, _, got) in zip(off, others, strict=True)
            ]
            if number:
                times.setdefault(name, []).append(tuple(seconds for _, seconds, _ in row))
    print("| | plain ms | packed ms | int8 ms | OpenVINO ms | plain / packed | packed / int8 | packed / OpenVINO |")
    print("|---|---|---|---|---|---|---|---|")
    for name, rounds in times.items():
        medians = " | ".join(f"{statistics.median(column) * 1e3:,.0f}" for column in zip(*rounds, strict=True))
        ratios = " | ".join(ratio(rounds, *pair) for pair in ((0, 1), (1, 2), (1, 3)))
        print(f"| {name} | {medians} | {ratios} |")
    print(f"\nLargest difference of a logit: packed {off[0]:.1e}, int8 {off[1]:.1e}, OpenVINO {off[2]:.1e}.")
    print(f"Load average {os.getloadavg()[0]:.1f}.")


def ratio(rounds: Sequence[Sequence[float]], one: int, other: int) -> str:
    ratios = sorted(times[one] / times[other] for times in rounds)
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"


if __name__ == "__main__":
    main()
