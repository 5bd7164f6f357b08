"""What is kept of the demo model's images on the device, against what the CPU keeps."""

import torch
from torch import Tensor

from covervlm.kernels import coverage_affinity, greedy_max_coverage
from covervlm.server.demo import model_path
from covervlm.server.models.base import ImageTokens
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from gpu.asking import QUESTIONS, scenes
from gpu.device import DEVICE
from gpu.sizes import Sizes
from gpu.table import Table

TIE = 1e-4
"""Relative difference of what two selections cover, below which rounding has decided between them."""


@torch.inference_mode()
def run(sizes: Sizes) -> Table:
    """Its problem: what the device keeps in float32 covers more or less than what the CPU keeps, beyond TIE."""
    cpu = load_adapter(Checkpoint(model_path(), "cpu", "float32"))
    rows, problem = [], ""
    counts = {name: [0, 0, 0] for name in ("the CPU's features", "the device's float32 tower", "its float16 tower")}
    towers = {
        "the device's float32 tower": load_adapter(Checkpoint(model_path(), str(DEVICE), "float32")),
        "its float16 tower": load_adapter(Checkpoint(model_path(), str(DEVICE), "float16")),
    }
    for number, image in enumerate(scenes(sizes.questions)):
        pixels, words = cpu.preprocess(image), cpu.question_embeddings(QUESTIONS[number % len(QUESTIONS)])
        [seen] = cpu.encode([pixels])
        affinity = coverage_affinity(words, seen.tokens, seen.features)
        expected = greedy_max_coverage(affinity, sizes.kept, backend="torch").tolist()
        views = {"the CPU's features": seen.to(DEVICE)}
        views |= {name: adapter.encode([pixels])[0] for name, adapter in towers.items()}
        for name, view in views.items():
            found = _kept(view, words, sizes.kept)
            off = abs(_covered(affinity, found) / _covered(affinity, expected) - 1)
            counts[name][0] += len(set(found) & set(expected))
            counts[name][1] += set(found) == set(expected)
            counts[name][2] += off < TIE
            if off >= TIE and "float16" not in name:
                problem = f"{name}: what is kept covers {off:.1e} more or less than the CPU's"
    for name, (indices, sets, ties) in counts.items():
        share = indices / (sizes.kept * sizes.questions)
        rows.append(
            [name, f"{share:.2%}", f"{sets} of {sizes.questions}", f"{ties - sets} of {sizes.questions - sets}"]
        )
    columns = ("selected on the device from", "indices equal", "sets equal", "of the others, ties")
    return Table(
        columns,
        rows,
        f"MMTok, 576 -> {sizes.kept}, by Triton; the CPU's picks are plain torch's on float32 features. "
        f"A tie: both sets cover the same to {TIE:.0e}.",
        problem,
    )


def _kept(view: ImageTokens, words: Tensor, count: int) -> list[int]:
    text = words.to(DEVICE, view.tokens.dtype)
    affinity = coverage_affinity(text, view.tokens, view.features, backend="triton")
    return greedy_max_coverage(affinity, count, backend="triton").tolist()


def _covered(affinity: Tensor, kept: list[int]) -> float:
    return float(affinity[:, kept].amax(1).sum(dtype=torch.float64))
