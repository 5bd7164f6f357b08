"""A request's way through the model on a device that is not there, by tensors with a device and a shape but no values.

    PYTHONPATH=benchmarks python tests/server/engines/pretended_gpu.py 7b

torch refuses to combine such tensors with those of the CPU, as it does with a real GPU's. A process of its own, since
the made-up device stays registered.
"""

import sys
from dataclasses import replace
from typing import Any

import torch
from gpu.random_models import image_side, random_adapter
from gpu.sizes import TINY
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from covervlm.pruners import get_pruner
from covervlm.server.core.generation import ImagePart, Message
from covervlm.server.engines.embedded.kv_slots import KVSlots
from covervlm.server.engines.embedded.model_runner import ModelRunner
from covervlm.server.engines.embedded.prefix_cache import Prefix
from covervlm.server.engines.embedded.step_graphs import StepGraphs
from covervlm.server.engines.embedded.stepping import Rows
from covervlm.server.models.base import Adapter, Layout
from covervlm.server.selection.selector import parts_to_prune

_setup_privateuseone_for_python_backend("pretended")
GPU = torch.device("pretended:0")


class RunnerOfSlots(ModelRunner):
    """As on a GPU, whose graphs are nothing that this device has."""

    def _empty_batch(self) -> Rows:
        graphs = StepGraphs()
        graphs._works = False
        return KVSlots(self._step, graphs, 2**30)


def move(adapter: Adapter) -> None:
    """Empty weights and buffers on the device in place of the adapter's own."""
    for module in adapter.model.modules():
        for store in (module._parameters, module._buffers):
            for name, own in store.items():
                if own is not None:
                    empty = torch.empty(own.shape, dtype=own.dtype, device=GPU)
                    store[name] = torch.nn.Parameter(empty, False) if store is module._parameters else empty


def without_values(layout: Layout, mode: FakeTensorMode) -> Layout:
    """It is worked out from values, so beforehand, and then as much on the CPU as before."""
    parts = [
        replace(one, positions=mode.from_tensor(one.positions), rows=mode.from_tensor(one.rows)) for one in layout.parts
    ]
    empty = Layout(layout.total, tuple(parts))
    empty.__dict__["rows"] = mode.from_tensor(layout.rows)
    return empty


def check(adapter: Adapter, picture: Image.Image, pixels: Any) -> None:
    """AssertionError, or torch's own errors, where something is on the wrong device."""
    [image] = adapter.encode([pixels], cls_attention=True)
    text = adapter.question_embeddings("Where is the star?")
    parts = parts_to_prune(image, get_pruner("cls_attention"), text, seed=0)
    assert {one.device for part in parts for one in (part.tokens, part.features, part.cls_attention, part.text)} == {
        GPU
    }
    ids = adapter.tokenize((Message("user", (ImagePart(picture, ""), "Where is the star?")),))
    prompts = [adapter.assemble(ids, [image], [places]) for places in (None, image.layout.parts[0].positions[::4])]
    assert {one.device for prompt in prompts for one in prompt} == {GPU}
    for kind in (ModelRunner, RunnerOfSlots):
        check_steps(kind(adapter), prompts, adapter.vocabulary_size)


def check_steps(runner: ModelRunner, prompts: list[tuple[torch.Tensor, torch.Tensor]], vocabulary: int) -> None:
    logits, hidden = runner.prefill([(embeddings, positions[:, :-1]) for embeddings, positions in prompts], [1, 2])
    assert {one.device for one in hidden} == {GPU}
    step = runner.decode([1, 2, 3], [50, 20, 20])
    runner.keep([0, 2])
    fewer = runner.decode([1, 2], [51, 21])
    assert {one.device for one in (logits, step, fewer)} == {GPU}
    assert [one.shape for one in (logits, step, fewer)] == [(rows, vocabulary) for rows in (2, 3, 2)]
    known = runner.read(0)
    assert {side.device for layer in known for side in layer} == {GPU}
    embeddings, positions = prompts[0]
    again, _ = runner.prefill([(embeddings[10:], positions[:, 10:-1])], [1], Prefix(10, known))
    assert (again.device, again.shape) == (GPU, (1, vocabulary))


def main(name: str) -> None:
    shape = TINY.servings[name].shape
    adapter = random_adapter(shape, torch.device("cpu"))
    picture = Image.new("RGB", (image_side(shape), image_side(shape)), "red")
    pixels = adapter.preprocess(picture)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    layout = without_values(adapter.architecture.layout(pixels["shape"]), mode)
    adapter.architecture.layout = lambda shape: layout  # type: ignore[assignment]
    made = torch.tensor

    def tensor(data: Any, *, dtype: torch.dtype | None = None, device: Any = "cpu") -> torch.Tensor:
        """The one function that would ask the device itself for memory."""
        own = made(data, dtype=dtype)
        return own if torch.device(device).type == "cpu" else torch.empty(own.shape, dtype=own.dtype, device=device)

    torch.tensor = tensor  # type: ignore[assignment]
    with mode, torch.inference_mode():
        move(adapter)
        check(adapter, picture, pixels)


if __name__ == "__main__":
    main(sys.argv[1])
