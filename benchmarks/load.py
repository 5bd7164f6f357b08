"""A server under load, unpruned and at several budgets side by side: time to first token, throughput, errors.

    python benchmarks/load.py                                       the demo model, transformers engine
    python benchmarks/load.py --model random                        random weights, a language model that dominates
    python benchmarks/load.py --images same                         one image, other questions with every request
    python benchmarks/load.py --concurrency 8 --rate 0.5 1.0        closed loop, and Poisson arrivals at given rates
    python benchmarks/load.py --model random --peer transformers    beside `transformers serve` on the same model
    python benchmarks/load.py --engine vllm --peer vllm --python .venv-vllm/bin/python
    python benchmarks/load.py --budgets 192 64 vision_coverage:64   a budget may name its method
    python benchmarks/load.py --scenario overload --model random    a fixed budget against an adaptive one

The load comes from guidellm, in an environment of its own (`make .venv-load/.ready`); this program adds the budgets,
the demo's scenes and questions, and starts and stops the servers, all on the loopback interface. In every round each
load is put on each variant, in an order that reverses from round to round, so that ratios compare measurements close in
time; percentiles are over all rounds. With --tokens every answer has exactly that many tokens. By default the demo
model's answers end by themselves and are checked, and other models' have 32 tokens. A measurement ends after
--requests-per-stream answers per stream, or after --seconds. A table, a plot, and a CSV file with one line per request
are written to --out after every measurement, so that a run that is cut short leaves what it has measured.
"""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from speed.load_generator import Load, LoadGenerator, Variant
from speed.load_report import Measurement, plot, rows, table, write_csv
from speed.local_server import local_server
from speed.peers import TORCHVISION_CURE, transformers_serve, vllm_serve
from speed.random_llava import SHAPE, save_random_llava
from speed.workload import IMAGES, Asked, workload
from tqdm import tqdm

from covervlm.server.demo import model_path

NAME = "model"
"""What our server and vLLM call the model."""
RANDOM = Path("results/random-llava")
TOKENS = 32
AHEAD = 32
"""Requests to keep in reserve for a closed loop: guidellm fetches some in advance, and hangs if there are none."""
FIXED = "192"
OVERLOAD_BATCH = "8"
"""Answers that decode at once under overload: few, so that the excess waits in the queue, not in the batch."""


def model_folder(name: str) -> Path:
    if name == "demo":
        return model_path()
    if name == "random":
        return RANDOM if (RANDOM / "model.safetensors").exists() else save_random_llava(RANDOM)
    return Path(name)


class Servers:
    """Starts what the arguments name; everything ends with the stack."""

    def __init__(self, arguments: argparse.Namespace, stack: ExitStack) -> None:
        self._arguments = arguments
        self._stack = stack
        self._model = model_folder(arguments.model)

    def ours(self, *options: str) -> str:
        """The URL of a server of ours with these options."""
        arguments = self._arguments
        options = ("--model", str(self._model), "--served-model-name", NAME, "--engine", arguments.engine, *options)
        options += ("--threads", arguments.threads) if arguments.threads else ()
        if arguments.engine == "vllm":
            options += ("--vllm-args=--enforce-eager --max-model-len 1024",)  # as the plain vLLM of `peers` has it
            environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": str(TORCHVISION_CURE)}
            return self._stack.enter_context(local_server(options, arguments.python, environment))
        return self._stack.enter_context(local_server(options))

    def peer(self, name: str) -> Variant:
        if name == "transformers":
            url = self._stack.enter_context(transformers_serve(self._arguments.generator, self._model))
            return Variant("transformers serve", url, str(self._model))
        return Variant(
            "plain vLLM", self._stack.enter_context(vllm_serve(self._arguments.python, self._model, NAME)), NAME
        )


def budget_variants(arguments: argparse.Namespace, servers: Servers) -> list[Variant]:
    """Unpruned and every budget on one server, which takes them by request; then the peers."""
    url = servers.ours()
    exact = {} if arguments.tokens is None else {"ignore_eos": True}
    budgets: dict[str, dict[str, Any]] = {"unpruned": {"method": "none"}}
    for budget in arguments.budgets:
        method, _, keep = budget.rpartition(":")
        method = method or arguments.method
        budgets[f"{method} {keep}"] = {"method": method, "keep_tokens": int(keep)}
    variants = [Variant(name, url, NAME, {"vision_pruning": fields, **exact}) for name, fields in budgets.items()]
    return variants + [servers.peer(name) for name in arguments.peer]


def overload_variants(arguments: argparse.Namespace, servers: Servers) -> list[Variant]:
    """A server with a fixed budget, and one whose budget adapts to the queue."""
    exact = {} if arguments.tokens is None else {"ignore_eos": True}
    return [
        Variant(name, servers.ours(*options, "--max-running", OVERLOAD_BATCH), NAME, exact)
        for name, options in (
            (f"fixed {FIXED}", ("--keep-tokens", FIXED)),
            (f"adaptive {arguments.adaptive}", ("--adaptive-budget", arguments.adaptive)),
        )
    ]


class Bench:
    """Measures loads on variants; numbers the measurements, so that each sends images of its own."""

    def __init__(self, generator: LoadGenerator, arguments: argparse.Namespace) -> None:
        self._generator = generator
        self._arguments = arguments
        self._number = 0

    def warm_up(self, variants: Sequence[Variant]) -> None:
        """Let every variant answer twice, to get one-time work out of the way; raises SystemExit if one refuses."""
        for variant in variants:
            for asked in self._workload(2):
                content = [
                    {"type": "image_url", "image_url": {"url": asked.image}},
                    {"type": "text", "text": asked.question},
                ]
                body = {"model": variant.model, "messages": [{"role": "user", "content": content}], "max_tokens": 4}
                answer = httpx.post(f"{variant.url}/v1/chat/completions", json=body | variant.fields, timeout=300)
                if answer.status_code != 200:
                    raise SystemExit(f"{variant.name} refuses a request: {answer.text[:400]}")

    def measure(self, load: Load, variant: Variant, number: int) -> Measurement:
        asked = self._workload(load.requests + (AHEAD + 2 * load.concurrency if load.concurrency else 0))
        options = {"tokens": self._arguments.tokens, "seconds": self._arguments.seconds}
        return Measurement(variant.name, load, number, self._generator.measure(load, variant, asked, **options))

    def rounds(self, loads: Sequence[Load], variants: Sequence[Variant]) -> Iterator[Measurement]:
        with tqdm(total=self._arguments.rounds * len(loads) * len(variants), unit="measurement") as bar:
            for number in range(self._arguments.rounds):
                for load in loads:
                    for variant in variants[:: -1 if number % 2 else 1]:
                        bar.set_postfix_str(f"{variant.name}, {load.name}")
                        yield self.measure(load, variant, number)
                        bar.update()

    def _workload(self, count: int) -> list[Asked]:
        self._number += 1
        return workload(self._arguments.images, count, self._number)


def table_loads(arguments: argparse.Namespace) -> list[Load]:
    closed = [Load(arguments.requests_per_stream * max(streams, 2), streams) for streams in arguments.concurrency]
    return closed + [Load(arguments.requests_per_stream * 8, rate=rate) for rate in arguments.rate]


def run_table(arguments: argparse.Namespace, bench: Bench, servers: Servers) -> Iterator[Measurement]:
    """All loads on all budgets and peers."""
    variants = budget_variants(arguments, servers)
    bench.warm_up(variants)
    yield from bench.rounds(table_loads(arguments), variants)


def run_overload(arguments: argparse.Namespace, bench: Bench, servers: Servers) -> Iterator[Measurement]:
    """The fixed budget's capacity, which is printed, then arrivals at --overload times that rate."""
    variants = overload_variants(arguments, servers)
    bench.warm_up(variants)
    capacity = bench.measure(Load(arguments.requests_per_stream * 8, 8), variants[0], 0)
    arrivals = Load(arguments.requests_per_stream * 8, rate=arguments.overload * capacity.requests_per_second)
    print(f"{variants[0].name}: {capacity.requests_per_second:.2f} requests/s at capacity", file=sys.stderr)
    yield from bench.rounds([arrivals], variants)


SCENARIOS = {"table": run_table, "overload": run_overload}


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", choices=SCENARIOS, default="table")
    parser.add_argument("--model", default="demo", help="demo, random, or a folder (default: demo)")
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--peer", choices=["transformers", "vllm"], action="append", default=[], help="may be repeated")
    parser.add_argument("--python", type=Path, help="the interpreter of the environment that holds vLLM")
    parser.add_argument("--method", default="mmtok")
    parser.add_argument("--budgets", nargs="*", default=["192", "128", "64", "32"], metavar="[METHOD:]COUNT")
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 8, 32], help="closed loops (default: 1 8 32)")
    parser.add_argument("--rate", type=float, nargs="*", default=[], help="open loops: Poisson arrivals a second")
    parser.add_argument("--overload", type=float, default=2.0, help="arrivals over capacity, with --scenario overload")
    parser.add_argument("--adaptive", default="64:192", help="the adaptive budget (default: 64:192)")
    parser.add_argument("--images", choices=IMAGES, default="new", help="a new image per request, or always the same")
    parser.add_argument("--tokens", type=int, help="exact number of tokens of every answer")
    parser.add_argument(
        "--requests-per-stream", type=int, default=3, help="answers a measurement waits for (default: 3)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=120, help="a measurement's limit (default: 120)")
    parser.add_argument("--threads", help="torch threads of our server")
    parser.add_argument(
        "--generator",
        type=Path,
        default=Path(".venv-load/bin/python"),
        help="the interpreter of guidellm and transformers serve",
    )
    parser.add_argument("--out", type=Path, help="path without suffix (default: results/load-MODEL-SCENARIO)")
    arguments = parser.parse_args(argv)
    if arguments.python is None and ("vllm" in arguments.peer or arguments.engine == "vllm"):
        parser.error("--engine vllm and --peer vllm need --python, e.g. .venv-vllm/bin/python")
    if not arguments.generator.exists():
        parser.error(f"there is no {arguments.generator}; make .venv-load/.ready creates it")
    if arguments.model != "demo" and arguments.tokens is None:
        arguments.tokens = TOKENS
    if arguments.out is None:
        arguments.out = Path("results") / f"load-{Path(arguments.model).name}-{arguments.scenario}"
    return arguments


def report(arguments: argparse.Namespace, measurements: Sequence[Measurement]) -> str:
    """Write the files of the measurements so far, the first of which is the baseline's; returns the table."""
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_csv(measurements, arguments.out.with_suffix(".csv"))
    found = rows(measurements, measurements[0].variant)
    text = table(found, accuracy=arguments.tokens is None)
    arguments.out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    plot(found, arguments.out.with_suffix(".png"), f"model {arguments.model}, {arguments.engine} engine")
    return text


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parsed(argv)
    # If the program is terminated from outside, it still ends its servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    measurements: list[Measurement] = []
    with ExitStack() as stack:
        servers = Servers(arguments, stack)
        bench = Bench(stack.enter_context(LoadGenerator(arguments.generator)), arguments)
        for measurement in SCENARIOS[arguments.scenario](arguments, bench, servers):
            measurements.append(measurement)
            text = report(arguments, measurements)
    shape = f"Random weights: {SHAPE}.\n\n" if arguments.model == "random" else ""
    print(f"{shape}{text}\n\nRatios are to {measurements[0].variant}. Files: {arguments.out}.md, .csv, .png")


if __name__ == "__main__":
    main()
