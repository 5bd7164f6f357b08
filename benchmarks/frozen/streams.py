"""Streams whose classes do not come equally often: what OnZeta's balance costs, and what helps."""

from typing import Any

import torch
from clip_space.class_proxies import class_proxies
from demo_model.scenes import make_scene
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.clip.methods.onzeta import OnZeta
from frozen.runs import SEEDS
from frozen.spaces import embedded, encoder, hidden

NAMES, EACH = ("star", "circle", "triangle", "square"), 24
SETTINGS: dict[str, dict[str, Any]] = {
    "the paper's parameters": {},
    **{f"alpha {alpha}": {"alpha": alpha} for alpha in (0.5, 0.25, 0.1, 0.0)},
    "learning_rate_rho 5": {"learning_rate_rho": 5.0},
}


def imbalance() -> list[str]:
    """Right labels of streams of one class, of one and a few of another, and of four that are balanced."""
    drawn = [make_scene(90_500_000 + number, n_objects=1) for number in range(240)]
    of_class = [[one for one in drawn if one.objects[0].shape == name][:EACH] for name in NAMES]
    x = embedded(hidden("four_classes", lambda: [one.image for group in of_class for one in group]))
    y, text = torch.arange(len(NAMES)).repeat_interleave(EACH), class_proxies(encoder().embed_texts, NAMES)
    noisy = normalize(x + 0.12 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), dim=1)
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(x), generator=generator) for _ in range(SEEDS)]
    alone = [(y == number).nonzero().squeeze(1) for number in range(len(NAMES))]
    few = [torch.cat([rows, alone[(number + 1) % len(NAMES)][:4]]) for number, rows in enumerate(alone)]

    def cells(right: Any) -> str:
        ends = [[right(x, rows) for rows in kind] for kind in (alone, few)]
        means = [sum(right(points, order) for order in orders) / SEEDS for points in (x, noisy)]
        return " | ".join([*(f"{min(found)} to {max(found)}" for found in ends), *(f"{mean:.1f}" for mean in means)])

    def plain(points: Tensor, rows: Tensor) -> int:
        return int(((points[rows] @ text).argmax(dim=1) == y[rows]).sum())

    lines = ["## OnZeta where classes do not come equally often: right labels", ""]
    lines += ["Demo CLIP, clean scenes; the last two columns are means of five orders.", ""]
    lines += ["| | 24 of one class | 24 and 4 of another, of 28 | 24 of each of four, of 96 | the same with noise |"]
    lines += ["|---|" + "---:|" * 4, f"| class names alone | {cells(plain)} |"]
    for name, parameters in SETTINGS.items():

        def right(points: Tensor, rows: Tensor, parameters: dict[str, Any] = parameters) -> int:
            stream = OnZeta(**parameters).open(text, len(rows))
            labels = torch.tensor([answer.label for answer in stream.observe_all(points[rows])])
            return int((labels == y[rows]).sum())

        lines.append(f"| {name} | {cells(right)} |")
    return [*lines, ""]
