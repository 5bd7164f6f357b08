"""Tokens per second with a JSON schema against without, side by side, at a vocabulary of 32,002 tokens.

    python benchmarks/structured.py                          1, 8 and 32 answers at once, greedy
    python benchmarks/structured.py --temperature 1 --rounds 9
    python benchmarks/structured.py --vocabulary qwen        151,665 tokens
    python benchmarks/structured.py --decoder random         one as large as in docs/load.md
    python benchmarks/structured.py --scenes 200             what `covervlm extract` makes of so many scenes instead

A LLaVA with random weights, a decoder of the demo model's size (or --decoder's) and a real tokenizer runs in this
process. Every answer has exactly --tokens tokens. Rounds with and without the schema alternate; the ratio is the median
over pairs of rounds, so that what else keeps the machine busy weighs on both. The load is printed. Beside it stands the
ratio of the CPU time of this process, which others do not use. A run takes two minutes on two idle cores.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from evaluation.extraction import table
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration

from covervlm.server.core.generation import GenerationChunk, GenerationRequest, Message, SamplingParams
from covervlm.server.core.grammar import Grammar
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig

sys.path.insert(0, str(Path(__file__).parents[1]))  # the checkpoints are those of the tests

from tests.zoo.checkpoints import ZOO
from tests.zoo.exhibit import Exhibit

SCHEMA = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "label": {"type": "string", "minLength": 4, "maxLength": 40},
            "color": {"enum": ["red", "green", "blue", "yellow", "purple"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 999},
            "box": {
                "type": "array",
                "items": {"type": "number", "minimum": 0, "maximum": 1},
                "minItems": 4,
                "maxItems": 4,
            },
        },
        "required": ["label", "color", "count", "box"],
        "additionalProperties": False,
    },
}
"""Records of things in a picture; too many of them for an answer to end."""


@dataclass(frozen=True)
class Decoder:
    """Layers, widths and heads of a language model."""

    layers: int
    width: int
    mlp: int
    heads: int

    def inside(self, exhibit: Exhibit) -> Exhibit:
        """The exhibit with this language model."""

        def build(tokenizer: Any, hidden_size: int) -> Any:
            config = exhibit.model(tokenizer, hidden_size).config
            text = config.text_config
            text.num_hidden_layers, text.intermediate_size, text.head_dim = (
                self.layers,
                self.mlp,
                self.width // self.heads,
            )
            text.num_attention_heads = text.num_key_value_heads = self.heads
            return LlavaForConditionalGeneration(config)

        return replace(exhibit, model=build)


DECODERS = {"demo": Decoder(4, 192, 512, 6), "random": Decoder(12, 1024, 2816, 16)}
"""The demo model's, and that of `speed/random_llava.py`, on which the other servers are measured."""


async def round_of(engine: TransformersEngine, rows: int, sampling: SamplingParams) -> tuple[float, float]:
    """Tokens per second, and per second of CPU time, of so many answers at once."""

    async def tokens(number: int) -> int:
        message = Message("user", (f"List what is in picture {number}.",))
        request = GenerationRequest(f"{number}", (message,), sampling)
        async with aclosing(cast(AsyncGenerator[GenerationChunk, None], engine.generate(request))) as chunks:
            return sum([chunk.tokens async for chunk in chunks])

    started, worked = time.perf_counter(), time.process_time()
    counts = await asyncio.gather(*(tokens(number) for number in range(rows)))
    assert set(counts) == {sampling.max_tokens}, "an answer ended before its time"
    return sum(counts) / (time.perf_counter() - started), sum(counts) / (time.process_time() - worked)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--threads", type=int, help="torch's")
    parser.add_argument("--vocabulary", default="llama_2", help="one of tests/zoo/vocabularies.py")
    parser.add_argument("--decoder", choices=DECODERS, default="demo", help="whose size the decoder has")
    parser.add_argument("--scenes", type=int, help="the accuracy of a table of so many scenes, and nothing else")
    options = parser.parse_args()
    if options.scenes:
        print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the beginning")
        print(table(options.scenes))
        print(f"load {os.getloadavg()[0]:.1f} at the end")
        return
    decoder = DECODERS[options.decoder]
    exhibit = replace(decoder.inside(ZOO["llava-1.5-vicuna"]), vocabulary=options.vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        exhibit.save(Path(folder), hidden_size=decoder.width)
        engine = TransformersEngine(TransformersEngineConfig(folder, threads=options.threads))
        await engine.start()
    plain = SamplingParams(max_tokens=options.tokens, temperature=options.temperature, seed=1, ignore_eos=True)
    structured = replace(plain, grammar=Grammar.of_schema(SCHEMA))
    print(f"{os.cpu_count()} CPUs, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} at the beginning")
    lines = [
        "| rows | tokens/s without | with | ratio | lowest to highest | by CPU time |",
        "|---|---|---|---|---|---|",
    ]
    for rows in options.rows:
        await round_of(engine, rows, plain)
        await round_of(engine, rows, structured)
        without, held = [], []
        for number in tqdm(range(options.rounds), desc=f"{rows} rows"):
            for sampling in (plain, structured) if number % 2 else (structured, plain):
                (without if sampling is plain else held).append(await round_of(engine, rows, sampling))
        ratios, by_cpu = ([b[i] / a[i] for a, b in zip(without, held, strict=True)] for i in (0, 1))
        rates = [f"{statistics.median(rate for rate, _ in one):.0f}" for one in (without, held)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        cells = [f"{rows}", *rates, f"{statistics.median(ratios):.2f}", spread, f"{statistics.median(by_cpu):.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    print("\n".join(lines))
    print(f"load {os.getloadavg()[0]:.1f} at the end")
    await engine.stop()


if __name__ == "__main__":
    asyncio.run(main())
