"""The embedded engine's greedy answers of the demo model on the device, against transformers' generate there."""

import asyncio
from collections.abc import Sequence
from itertools import takewhile

import torch

from covervlm.server.core.generation import GenerationRequest, ImagePart
from covervlm.server.demo import model_path
from covervlm.server.models.base import Adapter
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from gpu.asking import ask, ask_together, request, scenes
from gpu.device import DEVICE
from gpu.engines import serving
from gpu.sizes import Sizes
from gpu.table import Table

ANSWER = 30


def run(sizes: Sizes) -> Table:
    """Raises AssertionError where an answer in float32 is not generate's."""
    rows = []
    for dtype in ("float32", "float16"):
        adapter = load_adapter(Checkpoint(model_path(), str(DEVICE), dtype))
        asked = [request(n, image, keep=None, answer=ANSWER) for n, image in enumerate(scenes(sizes.questions))]
        expected = [_generated(adapter, one) for one in asked]
        together, alone = asyncio.run(_answers(adapter, asked))
        for name, found in (("all at once", together), ("one by one", alone)):
            equal = sum(map(_equal, found, expected))
            agreed = sum(
                len(list(takewhile(_same, zip(a, b, strict=False)))) for a, b in zip(found, expected, strict=True)
            )
            share = agreed / sum(map(len, expected))
            rows.append([dtype, name, f"{equal} of {len(expected)}", f"{share:.1%}"])
            assert dtype != "float32" or equal == len(expected), f"{name}: {equal} of {len(expected)} answers equal"
    note = (
        f"The demo model, unpruned, at most {ANSWER} tokens; batched prefill and decoding where all are asked at once."
    )
    return Table(("dtype", "asked", "answers equal to generate's", "tokens up to the first difference"), rows, note)


async def _answers(
    adapter: Adapter, asked: Sequence[GenerationRequest]
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    async with serving(adapter) as engine:
        together = [answer.tokens for answer in await ask_together(engine, asked)]
        return together, [(await ask(engine, one)).tokens for one in asked]


@torch.inference_mode()
def _generated(adapter: Adapter, asked: GenerationRequest) -> tuple[int, ...]:
    """By transformers' own generate, of the same model object and pixels."""
    [part] = asked.images
    assert isinstance(part, ImagePart)
    ids = torch.tensor([adapter.expanded(adapter.tokenize(asked.prompt), [adapter.architecture.vision_tokens or 0])])
    pixels = adapter.preprocess(part.image)["pixel_values"][None]
    dtype = adapter.embeddings.weight.dtype
    ids, pixels = ids.to(DEVICE), pixels.to(DEVICE, dtype)
    out = adapter.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=pixels,
        max_new_tokens=ANSWER,
        do_sample=False,
    )
    return tuple(out[0, ids.shape[1] :].tolist())


def _equal(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return one == other


def _same(pair: tuple[int, int]) -> bool:
    return pair[0] == pair[1]
