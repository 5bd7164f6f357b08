"""Spaces for search: classes of which nothing was learned, and what is finer than the labels."""

import torch
from clip_space.agreement import nmi
from demo_model.scenes import COLOR_NAMES
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.clip.methods.contracts import Examples
from covervlm.server.clip.methods.kmeans import kmeans
from covervlm.server.clip.methods.registry import method_class
from covervlm.server.clip.methods.soft_triple import principal_directions
from frozen.runs import SEEDS, Runs, collect, table
from frozen.spaces import PAIRS, crops, scenes


def recall(points: Tensor, y: Tensor, k: int) -> float:
    """The share of points with one of their class among their k nearest others."""
    nearest = (points @ points.T).fill_diagonal_(-2).topk(k, dim=1).indices
    return float((y[nearest] == y[:, None]).any(dim=1).float().mean())


def retrieval() -> list[str]:
    """Search among 32 classes of which nothing was learned."""
    space = scenes()
    figures: dict[str, Runs] = {"R@1": {}, "R@4": {}, "NMI": {}}
    for seed in range(SEEDS):
        order = torch.randperm(len(PAIRS), generator=torch.Generator().manual_seed(seed))
        seen = torch.isin(space.y, order[:32])
        given, asked, y = Examples(space.x[seen], labels=space.y[seen]), space.x[~seen], space.y[~seen]
        spaces = {"features": asked}
        for centers in (1, 5, 10):
            found = method_class("project", "soft_triple")(centers=centers).fit(given, seed=seed)
            spaces[f"soft_triple, {centers} centres"] = found.embed(asked)
        for d in (8, 16):
            spaces[f"principal directions, {d}"] = normalize(asked @ principal_directions(given.features, d).T, dim=1)
            spaces[f"kda, {d}"] = method_class("project", "kda")(dimensions=d).fit(given, seed=seed).embed(asked)
        for name, points in spaces.items():
            values = recall(points, y, 1), recall(points, y, 4), nmi(kmeans(points, 32, restarts=3), y)
            for figure, value in zip(figures, values, strict=True):
                collect(figures[figure], {name: value})
    return table("Search in unseen classes, noisy scenes", figures.items(), "features")


def coarse_labels() -> list[str]:
    """Search by shape and colour where only the shape was told; two crops of each scene."""
    (first, second), space = crops(), scenes()
    y = space.y[: len(first)]
    asked, fine = space.x[len(first) :], space.y[len(first) :]
    figures: dict[str, Runs] = {"R@1": {}, "R@4": {}}
    for seed in range(SEEDS):
        given = Examples(first, labels=y // len(COLOR_NAMES), second_views=second)
        spaces = {"features": asked}
        for name, parameters in {"coins": {}, "coins, without classes": {"coarse_weight": 0.0}}.items():
            method = method_class("project", "coins")
            spaces[name] = method(epochs=50, **parameters).fit(given, seed=seed).embed(asked)
        spaces["soft_triple on coarse classes"] = (
            method_class("project", "soft_triple")().fit(given, seed=seed).embed(asked)
        )
        for name, points in spaces.items():
            for figure, k in (("R@1", 1), ("R@4", 4)):
                collect(figures[figure], {name: recall(points, fine, k)})
    return table("Fine search from coarse classes, noisy scenes", figures.items(), "features")
