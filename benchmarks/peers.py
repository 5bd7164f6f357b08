"""Our server beside other people's, on the same weights and the same requests: first token, further tokens, requests/s.

    make bench-peers                                     all, in 15 minutes at most
    python benchmarks/peers.py --at 1 --rounds 1         a quick look
    python benchmarks/peers.py --only covervlm openvino

Weights are random, every request has an image of its own, some 590 prompt tokens and an answer of 8. A LLaVA
(benchmarks/speed/random_llava.py) is asked of everybody; a Qwen2.5-VL (benchmarks/speed/random_qwen.py), whose tokens
OpenVINO GenAI prunes as well, of us and OpenVINO alone, at 8 at once at most. All servers of a model run at the same
time, and those that are not asked wait. In a round each is asked in turn at each number at once, in an order that
reverses from round to round; 32 at once are asked in the first round alone. A server that answers one by one is asked
one at a time, since more would only wait for each other. Rows are medians over all requests, requests/s over the
rounds; ratios are to the first row.

--out is written anew after every measurement, and says which servers did not run and why. What would not be done
within --minutes, by how long its server took so far, is left out.
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the Qwen's files are those of the tests

from beside.contract import TOKENS, Answer, Ask, Model, Peer
from beside.covervlm_server import Covervlm
from beside.llama_cpp import LlamaCpp
from beside.openvino_pipes import OpenVino
from beside.transformers_serve import TransformersServe
from beside.vllm_cpu import VllmCpu
from speed.random_llava import save_random_llava
from speed.random_qwen import save_random_qwen
from speed.workload import workload
from tqdm import tqdm

MODELS = ("Qwen2.5-VL", "LLaVA-1.5")
ONCE = 32
"""From so many at once on, one round is measured: it takes minutes."""
SINGLES = 3
"""Requests of a round at one at a time."""


@dataclass(frozen=True)
class Part:
    """A checkpoint, what makes it, who serves it, and how many requests at once are sent at most."""

    title: str
    folder: Path
    make: Callable[[Path], Path]
    peers: dict[str, list[Peer]]
    most: int


def parts(arguments: argparse.Namespace) -> list[Part]:
    python = arguments.python
    qwen: dict[str, list[Peer]] = {
        "covervlm": [Covervlm(budgets=(192, 64))],
        "openvino": [OpenVino(python, "fp32"), OpenVino(python, "fp32", 67), OpenVino(python, "fp32", 89)],
    }
    llava: dict[str, list[Peer]] = {
        "covervlm": [Covervlm(), Covervlm.on_openvino()],
        "openvino": [OpenVino(python, "fp32"), OpenVino(python, "int8")],
        "llama.cpp": [LlamaCpp(python)],
        "transformers": [TransformersServe(arguments.transformers)],
        "vllm": [VllmCpu(arguments.vllm), Covervlm.on_vllm(arguments.vllm)],
    }
    return [
        Part(MODELS[0], Path("results/random-qwen"), save_random_qwen, qwen, 8),
        Part(MODELS[1], Path("results/random-llava"), save_random_llava, llava, 1024),
    ]


@dataclass(frozen=True)
class Wave:
    """Requests that were sent at once, or one after the other, and the seconds until all were answered."""

    name: str
    at_once: int
    answers: list[Answer]
    seconds: float


@dataclass
class Report:
    """What is known so far: waves by part, and what was not measured and why."""

    path: Path
    minutes: float
    started: float = field(default_factory=time.monotonic)
    waves: dict[str, list[Wave]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.minutes * 60 - (time.monotonic() - self.started)

    def write(self) -> str:
        tables = [
            f"{title}\n\n{table(sorted(waves, key=lambda wave: self.names.index(wave.name)))}"
            for title, waves in self.waves.items()
            if waves
        ]
        spent = (time.monotonic() - self.started) / 60
        loads = f"{min(self.loads):.1f} to {max(self.loads):.1f}" if self.loads else "unknown"
        ends = [f"{spent:.1f} minutes, {os.cpu_count()} cores, load average before the servers were asked {loads}."]
        if self.missing:
            ends.append("Not measured:\n" + "\n".join(f"- {each}" for each in self.missing))
        text = "\n\n".join([*tables, *ends]) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(text, encoding="utf-8")
        return text


async def measure(name: str, ask: Ask, at_once: int, number: int, singles: int = SINGLES) -> Wave:
    """One wave; RuntimeError where an answer is not of the asked length."""
    asked = workload("new", singles if at_once == 1 else at_once, number)
    started = time.perf_counter()
    answers = [await ask(one) for one in asked] if at_once == 1 else list(await asyncio.gather(*map(ask, asked)))
    seconds = time.perf_counter() - started
    if lengths := {answer.tokens for answer in answers} - {TOKENS}:
        raise RuntimeError(f"{name} gave {lengths} tokens where {TOKENS} were asked for")
    return Wave(name, at_once, answers, seconds)


def table(waves: Sequence[Wave]) -> str:
    names = list(dict.fromkeys(wave.name for wave in waves))
    lines = [
        "| at once | server | prompt tokens | first token ms | a further token ms | requests/s | "
        "first token sooner | further token sooner | requests/s more |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for at_once in sorted({wave.at_once for wave in waves}):
        base: tuple[float, float, float] | None = None
        for name in names:
            found = [wave for wave in waves if (wave.name, wave.at_once) == (name, at_once)]
            if not found:
                continue
            answers = [answer for wave in found for answer in wave.answers]
            first = statistics.median(answer.first for answer in answers)
            further = statistics.median(answer.further for answer in answers)
            rate = statistics.median(len(wave.answers) / wave.seconds for wave in found)
            prompt = statistics.median(answer.prompt_tokens for answer in answers)
            base = base or (first, further, rate)
            ratios = " | ".join(f"{ratio:.2f}x" for ratio in (base[0] / first, base[1] / further, rate / base[2]))
            times = f"{first * 1e3:,.0f} | {further * 1e3:,.0f} | {rate:.3f}"
            lines.append(f"| {at_once} | {name} | {prompt:.0f} | {times} | {ratios} |")
    return "\n".join(lines)


Variant = tuple[str, Ask, Peer]


async def start(part: Part, only: Sequence[str], stack: AsyncExitStack, report: Report) -> list[Variant]:
    """Every way to ask that the part has, of the servers that are installed and start."""
    model = Model(part.folder, part.folder.with_name(f"{part.folder.name}-for-peers"))
    wanted = [peer for kind, group in part.peers.items() if not only or kind in only for peer in group]

    async def one(peer: Peer) -> list[Variant]:
        if lacking := peer.lacking():
            report.missing.append(f"{part.title}: {peer.name} is not installed ({lacking})")
            return []
        try:
            asks = await stack.enter_async_context(peer.started(model))
        except (Exception, SystemExit) as error:
            report.missing.append(f"{part.title}: {peer.name} did not start: {error}")
            return []
        return [(*each, peer) for each in asks]

    variants = [variant for each in await asyncio.gather(*map(one, wanted)) for variant in each]
    report.names += [name for name, _, _ in variants if name not in report.names]
    return variants


async def run_part(part: Part, arguments: argparse.Namespace, report: Report, numbers: Iterator[int]) -> None:
    if not (part.folder / "model.safetensors").exists():
        part.make(part.folder)
    waves = report.waves.setdefault(part.title, [])
    async with AsyncExitStack() as stack:
        variants = await start(part, arguments.only or (), stack, report)
        # The first answer of each is not counted, but says how long the next ones take.
        taken: dict[str, float] = {}
        failed: set[str] = set()

        async def wave(name: str, ask: Ask, at_once: int, singles: int) -> Wave | None:
            try:
                # Nothing holds up the end, not even a server that hangs.
                most = max(60.0, report.left + 30)
                found = await asyncio.wait_for(measure(name, ask, at_once, next(numbers), singles), most)
            except Exception as error:
                failed.add(name)
                report.missing.append(f"{part.title}: {name} failed at {at_once} at once: {error!r}")
                return None
            taken[name] = min(taken.get(name, 1e9), found.seconds / len(found.answers))
            return found

        for name, ask, _ in tqdm(variants, desc=f"{part.title}, warming up"):
            await wave(name, ask, 1, 1)
        report.loads.append(os.getloadavg()[0])
        plan = [
            (round_, at_once, variant)
            for round_ in range(arguments.rounds)
            for at_once in sorted(arguments.at)
            if at_once <= part.most and (round_ == 0 or at_once < ONCE)
            for variant in variants[:: -1 if round_ % 2 else 1]
            if at_once == 1 or not variant[2].one_by_one
        ]
        for round_, at_once, (name, ask, _) in (bar := tqdm(plan, unit="wave")):
            bar.set_postfix_str(f"{name}, {at_once} at once")
            if name in failed:
                continue
            expected = taken[name] * (SINGLES if at_once == 1 else at_once)
            if expected > report.left:
                report.missing.append(
                    f"{part.title}: {name} at {at_once} at once in round {round_ + 1}, "
                    f"which would have taken some {expected:.0f} s of the {report.left:.0f} left"
                )
            elif (found := await wave(name, ask, at_once, SINGLES)) is not None:
                waves.append(found)
            report.write()


async def run(arguments: argparse.Namespace) -> None:
    report, numbers = Report(arguments.out, arguments.minutes), count(1)
    for part in parts(arguments):
        if part.title in arguments.models:
            await run_part(part, arguments, report, numbers)
    print(report.write())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at", type=int, nargs="+", default=[1, 8, 32], help="requests at once (default: 1 8 32)")
    parser.add_argument("--rounds", type=int, default=1, help="rounds (default: 1)")
    parser.add_argument("--minutes", type=float, default=13.5, help="begin nothing that would end later (13.5)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--only", nargs="+", choices=["covervlm", "openvino", "llama.cpp", "transformers", "vllm"])
    parser.add_argument(
        "--python", type=Path, default=Path(".venv-bench-peers/bin/python"), help="the peers' interpreter"
    )
    parser.add_argument("--transformers", type=Path, default=Path(".venv-load/bin/python"))
    parser.add_argument("--vllm", type=Path, default=Path(".venv-vllm/bin/python"))
    parser.add_argument("--out", type=Path, default=Path("results/peers.md"))
    asyncio.run(run(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
