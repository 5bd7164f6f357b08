"""First token and throughput of a LLaVA of real size with random weights in float16: unpruned and pruned."""

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from covervlm.server.core.engine import Engine
from covervlm.server.core.errors import EngineOverloaded
from gpu.asking import Answer, ask_together, request, scenes
from gpu.device import DEVICE
from gpu.engines import embedded
from gpu.random_models import image_side, random_adapter, vision_tokens
from gpu.sizes import Serving, Sizes
from gpu.table import Table

WARM_UPS = 2
"""Rounds that compile kernels, fill the allocator's pools and capture the steps."""
ROUNDS = 3
PICTURES = 8
COLUMNS = ("at once", "kept", "prompt tokens", "first token ms", "sooner", "requests/s", "more", "answer tokens/s")


def run(name: str, sizes: Sizes) -> Iterator[Table]:
    """The table as far as it is measured, after every row."""
    serve = sizes.servings[name]
    started = time.perf_counter()
    adapter = random_adapter(serve.shape, DEVICE)
    note = (
        f"{serve.shape.name} in shape, random weights, made in {time.perf_counter() - started:.0f} s. A new image of "
        f"{vision_tokens(serve.shape):,} vision tokens and a short question in every request, preprocessing included; "
        f"answers of {sizes.answer} tokens; medians of {ROUNDS} rounds after {WARM_UPS}, budgets in turn, first "
        "tokens over all requests of these. Ratios are to unpruned. MMTok's paper: 1.87x for a whole run of POPE, "
        "whose answers are a word, on LLaVA-NeXT-13B and an H100."
    )
    rows: list[list[str]] = []
    engine = embedded(adapter)
    with asyncio.Runner() as runner:
        runner.run(engine.start())
        try:
            for together in serve.at_once:
                measured = runner.run(_measured(engine, serve, together, sizes.answer))
                base = measured[serve.budgets[0]]
                for keep, one in measured.items():
                    cells = [str(together), str(keep or "all")]
                    if one is None:
                        rows.append([*cells, "out of memory", *[""] * 5])
                        continue
                    ratios = (
                        ("", "") if base is None else (f"{base.first / one.first:.2f}x", f"{one.rate / base.rate:.2f}x")
                    )
                    cells += [f"{one.tokens:.0f}", f"{one.first * 1e3:.0f}", ratios[0], f"{one.rate:.2f}", ratios[1]]
                    rows.append([*cells, f"{one.rate * sizes.answer:.0f}"])
                yield Table(COLUMNS, list(rows), note)
        finally:
            runner.run(engine.stop())


@dataclass(frozen=True)
class _Measured:
    """Prompt tokens, seconds to the first token, and requests per second; medians."""

    tokens: float
    first: float
    rate: float


async def _measured(engine: Engine, serve: Serving, together: int, answer: int) -> dict[int | None, _Measured | None]:
    """By budget, which take turns, so that what else the machine does meets all alike; None where memory runs out."""
    rounds: dict[int | None, list[tuple[float, Sequence[Answer]]] | None] = {keep: [] for keep in serve.budgets}
    for _ in range(WARM_UPS + ROUNDS):
        for keep, done in rounds.items():
            if done is not None:
                try:
                    done.append(await _round(engine, serve, keep, together, answer))
                except EngineOverloaded:
                    rounds[keep] = None
    return {keep: done and _medians(done[WARM_UPS:]) for keep, done in rounds.items()}


async def _round(
    engine: Engine, serve: Serving, keep: int | None, together: int, answer: int
) -> tuple[float, Sequence[Answer]]:
    """Requests per second, and the answers."""
    side = image_side(serve.shape)
    images = [image.resize((side, side)) for image in scenes(PICTURES)]
    started = time.perf_counter()
    asked = [request(n, images[n % PICTURES], keep=keep, answer=answer, ignore_eos=True) for n in range(together)]
    answers = await ask_together(engine, asked)
    return together / (time.perf_counter() - started), answers


def _medians(rounds: Sequence[tuple[float, Sequence[Answer]]]) -> _Measured:
    answers = [one for _, together in rounds for one in together]
    return _Measured(
        statistics.median(one.prompt.prompt_tokens for one in answers),
        statistics.median(one.first for one in answers),
        statistics.median(rate for rate, _ in rounds),
    )
