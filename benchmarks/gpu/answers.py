"""The embedded engine's greedy answers of the demo model on the device, against transformers' generate there."""

import asyncio
from collections.abc import Sequence
from itertools import takewhile

import torch

from covervlm.server.core.generation import GenerationRequest, ImagePart
from covervlm.server.demo import model_path
from covervlm.server.models.base import Adapter
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from gpu.asking import Answer, ask, ask_together, request, scenes
from gpu.device import DEVICE
from gpu.engines import serving
from gpu.sizes import Sizes
from gpu.table import Table

ANSWER = 30


def run(sizes: Sizes) -> Table:
    """Its problem: answers in float32 that are not generate's."""
    rows, problem = [], ""
    images = scenes(sizes.questions)
    for dtype in ("float32", "float16"):
        adapter = load_adapter(Checkpoint(model_path(), str(DEVICE), dtype))
        for keep in (None, sizes.kept):
            asked = [request(n, image, keep=keep, answer=ANSWER) for n, image in enumerate(images)]
            together, alone = asyncio.run(_answers(adapter, asked))
            for name, answers in (("all at once", together), ("one by one", alone)):
                pairs = [(one.tokens, _generated(adapter, what, one)) for what, one in zip(asked, answers, strict=True)]
                equal = sum(found == expected for found, expected in pairs)
                share = sum(map(_agreed, pairs)) / sum(len(expected) for _, expected in pairs)
                rows.append([dtype, str(keep or "all"), name, f"{equal} of {len(pairs)}", f"{share:.1%}"])
                if dtype == "float32" and equal < len(pairs):
                    problem = f"{len(pairs) - equal} answers in float32 are not generate's"
    columns = ("dtype", "kept", "asked", "answers equal to generate's", "tokens up to the first difference")
    note = (
        f"The demo model, at most {ANSWER} tokens. Unpruned, generate reads the pixels; pruned, the tokens that the "
        "engine kept."
    )
    return Table(columns, rows, note, problem)


async def _answers(adapter: Adapter, asked: Sequence[GenerationRequest]) -> tuple[list[Answer], list[Answer]]:
    async with serving(adapter) as engine:
        return await ask_together(engine, asked), [await ask(engine, one) for one in asked]


@torch.inference_mode()
def _generated(adapter: Adapter, asked: GenerationRequest, answer: Answer) -> tuple[int, ...]:
    """By transformers' own generate, with the same model object."""
    [part] = asked.images
    assert isinstance(part, ImagePart)
    pixels, ids = adapter.preprocess(part.image), adapter.tokenize(asked.prompt)
    [report] = answer.prompt.images
    assert report.indices is not None
    if report.kept == report.total:
        whole = torch.tensor([adapter.expanded(ids, [report.total])], device=DEVICE)
        values = pixels["pixel_values"][None].to(DEVICE, adapter.embeddings.weight.dtype)
        given = {"input_ids": whole, "pixel_values": values, "attention_mask": torch.ones_like(whole)}
        start = whole.shape[1]
    else:
        embeddings, _ = adapter.assemble(ids, adapter.encode([pixels]), [torch.tensor(report.indices)])
        mask = torch.ones(1, len(embeddings), dtype=torch.long, device=DEVICE)
        given, start = {"inputs_embeds": embeddings[None], "attention_mask": mask}, 0
    out = adapter.model.generate(**given, max_new_tokens=ANSWER, do_sample=False)
    return tuple(out[0, start:].tolist())


def _agreed(pair: tuple[Sequence[int], Sequence[int]]) -> int:
    return len(list(takewhile(lambda both: both[0] == both[1], zip(*pair, strict=False))))
