"""vLLM with the plugin on the device, where it is installed, against the embedded engine there."""

import asyncio
from importlib.util import find_spec

from covervlm.server.core.engine import Engine
from covervlm.server.demo import model_path
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from gpu.asking import Answer, ask_together, request, scenes
from gpu.device import DEVICE, INTERPRETED
from gpu.engines import serving
from gpu.sizes import Sizes
from gpu.table import Table

ANSWER = 30


def run(sizes: Sizes) -> Table:
    columns = ("kept", "answers equal to the embedded engine's", "indices equal")
    if INTERPRETED or find_spec("vllm") is None:
        why = "not tried in the interpreter" if INTERPRETED else "vLLM is not installed here"
        return Table(columns, [["", why, ""]], "")
    return Table(columns, asyncio.run(_rows(sizes)), "The demo model in float32, all requests at once.")


async def _rows(sizes: Sizes) -> list[list[str]]:
    from covervlm.server.engines.vllm.engine import VllmEngine, VllmEngineConfig

    async with serving(load_adapter(Checkpoint(model_path(), str(DEVICE), "float32"))) as embedded:
        expected = {keep: await _answers(embedded, keep, sizes) for keep in (None, sizes.kept)}
    engine = VllmEngine(VllmEngineConfig(str(model_path()), dtype="float32"))
    await engine.start()
    try:
        found = {keep: await _answers(engine, keep, sizes) for keep in expected}
    finally:
        await engine.stop()
    rows = []
    for keep, theirs in expected.items():
        pairs = list(zip(theirs, found[keep], strict=True))
        equal = sum(one.tokens == other.tokens for one, other in pairs)
        kept = sum(_kept(one) == _kept(other) for one, other in pairs)
        rows.append(["all" if keep is None else str(keep), f"{equal} of {len(pairs)}", f"{kept} of {len(pairs)}"])
    return rows


async def _answers(engine: Engine, keep: int | None, sizes: Sizes) -> list[Answer]:
    images = scenes(sizes.questions)
    return await ask_together(engine, [request(n, one, keep=keep, answer=ANSWER) for n, one in enumerate(images)])


def _kept(answer: Answer) -> tuple[int, ...] | None:
    return answer.prompt.images[0].indices
