"""First token and throughput of a LLaVA of real size with random weights in float16: unpruned and pruned."""

import asyncio
import statistics
import time
from collections.abc import Iterator
from functools import partial

from covervlm.server.core.engine import Engine
from covervlm.server.core.errors import EngineOverloaded
from gpu.asking import ask_together, request, scenes
from gpu.device import DEVICE
from gpu.engines import embedded
from gpu.random_models import image_side, random_adapter, vision_tokens
from gpu.sizes import Serving, Sizes
from gpu.table import Table

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
        f"answers of {sizes.answer} tokens; medians of {ROUNDS} rounds after one, first tokens over all requests of "
        "these. Ratios are to unpruned. MMTok's paper: 1.87x for a whole run of POPE, whose answers are a word, on "
        "LLaVA-NeXT-13B and an H100."
    )
    rows: list[list[str]] = []
    engine = embedded(adapter)
    with asyncio.Runner() as runner:
        runner.run(engine.start())
        try:
            for together in serve.at_once:
                base: tuple[float, float] | None = None
                for keep in serve.budgets:
                    cells = [str(together), str(keep or "all")]
                    try:
                        tokens, first, rate = runner.run(_measured(engine, serve, keep, together, sizes.answer))
                    except EngineOverloaded:
                        rows.append([*cells, "out of memory", *[""] * 5])
                    else:
                        base = base or ((first, rate) if keep is None else None)
                        ratios = ("", "") if base is None else (f"{base[0] / first:.2f}x", f"{rate / base[1]:.2f}x")
                        cells += [f"{tokens:.0f}", f"{first * 1e3:.0f}", ratios[0], f"{rate:.2f}", ratios[1]]
                        rows.append([*cells, f"{rate * sizes.answer:.0f}"])
                    yield Table(COLUMNS, list(rows), note)
        finally:
            runner.run(engine.stop())


async def _measured(
    engine: Engine, serve: Serving, keep: int | None, together: int, answer: int
) -> tuple[float, float, float]:
    """Prompt tokens, seconds to the first token, and requests per second."""
    side = image_side(serve.shape)
    images = [image.resize((side, side)) for image in scenes(PICTURES)]
    ask = partial(request, keep=keep, answer=answer, ignore_eos=True)
    firsts, rates, prompts = [], [], []
    for number in range(1 + ROUNDS):
        started = time.perf_counter()
        answers = await ask_together(engine, [ask(one, images[one % PICTURES]) for one in range(together)])
        if number:  # the first compiles kernels and fills the allocator's pools
            rates.append(together / (time.perf_counter() - started))
            firsts += [one.first for one in answers]
            prompts += [one.prompt.prompt_tokens for one in answers]
    return statistics.median(prompts), statistics.median(firsts), statistics.median(rates)
