"""k-means, the number of clusters by silhouette, and a plane to plot points on; all computed in float64.

A distance comes from squared norms, of which a small one would lose all its digits in float32.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_ROWS = 1024


def kmeans(
    points: Tensor,
    clusters: int,
    *,
    groups: Tensor | None = None,
    seed: int = 0,
    restarts: int = 10,
    iterations: int = 300,
    tick: Callable[[], object] = lambda: None,
) -> Tensor:
    """Labels (n,) int64 of Lloyd's algorithm from k-means++ starts; the best of `restarts` by squared distance.

    points: (n, d), n >= clusters >= 1. Labels are numbered by falling size of their cluster. groups: (n,) int64
    is a guess at the clusters, e.g. each image's reference word; the largest of them then are where the only run
    starts, which k-means++ completes where there are too few. tick: called before every iteration; what it raises ends
    the work.
    """
    n = len(points)
    if not 1 <= clusters <= n:
        raise ValueError(f"cannot make {clusters} clusters of {n} points")
    points = _centered(points)
    generator = torch.Generator().manual_seed(seed)
    known = points[:0] if groups is None else _largest_means(points, groups, clusters)
    best_labels, best_loss = torch.zeros(n, dtype=torch.int64), float("inf")
    for _ in range(restarts if groups is None else 1):
        tick()
        centers = _spread_starts(points, clusters, generator, known)
        loss = float("inf")
        for _ in range(iterations):
            tick()
            distances, labels = _nearest(points, centers)
            last, loss = loss, float(distances.sum())
            if loss >= last * (1 - 1e-6):
                break
            centers = _means(points, labels, distances, clusters)
        if loss < best_loss:
            best_labels, best_loss = labels, loss
    order = torch.bincount(best_labels, minlength=clusters).argsort(descending=True, stable=True)
    return order.argsort()[best_labels]


def silhouette(points: Tensor, labels: Tensor) -> float:
    """Mean silhouette width in [-1, 1] under Euclidean distance; clusters of one point count 0 (Rousseeuw, 1987)."""
    points = _centered(points)
    clusters = int(labels.max()) + 1
    sizes = torch.bincount(labels, minlength=clusters).to(points.dtype)
    members = torch.nn.functional.one_hot(labels, clusters).to(points.dtype)
    total = 0.0
    for rows, own in zip(points.split(_ROWS), labels.split(_ROWS), strict=True):
        sums = torch.cdist(rows, points) @ members
        inside = sums.gather(1, own[:, None]).squeeze(1) / (sizes[own] - 1).clamp_min(1)
        sums.div_(sizes).scatter_(1, own[:, None], float("inf"))
        nearest = sums.min(dim=1).values
        width = (nearest - inside) / torch.maximum(nearest, inside).clamp_min(1e-12)
        total += float(width[sizes[own] > 1].sum())
    return total / len(points)


def choose_clusters(
    points: Tensor, largest: int = 12, *, seed: int = 0, sample: int = 2000, tick: Callable[[], object] = lambda: None
) -> int:
    """The number of clusters from 2 to `largest` with the widest silhouette, judged on at most `sample` points."""
    if len(points) < 3:
        return min(len(points), 2)
    chosen = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[:sample]
    points = points[chosen]
    counts = range(2, min(largest, len(points) - 1) + 1)
    return max(counts, key=lambda k: silhouette(points, kmeans(points, k, seed=seed, restarts=4, tick=tick)))


def principal_plane(points: Tensor) -> Tensor:
    """(n, 2) coordinates along the two directions of greatest variance; signs are fixed, so results repeat."""
    if len(points) < 2:
        return points.new_zeros(len(points), 2)
    centered = _centered(points)
    scale = centered.abs().max()
    if not scale > 0:
        return points.new_zeros(len(points), 2)
    _, vectors = torch.linalg.eigh((centered / scale).T @ (centered / scale))
    axes = vectors[:, -2:].flip(1)
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    plane = (centered @ (axes * largest.sign())).to(points.dtype)
    return torch.nn.functional.pad(plane, (0, 2 - plane.shape[1]))


def _centered(points: Tensor) -> Tensor:
    points = points.double()
    return points - points.mean(dim=0)


def _spread_starts(points: Tensor, clusters: int, generator: torch.Generator, known: Tensor) -> Tensor:
    """k-means++ after `known` (k, d): each next centre drawn in proportion to the squared distance to those before."""
    centers = known
    if not len(centers):
        centers = points[torch.randint(len(points), (1,), generator=generator)]
    distances, _ = _nearest(points, centers)
    while len(centers) < clusters:
        weights = distances if bool(distances.sum() > 0) else torch.ones_like(distances)
        chosen = points[torch.multinomial(weights.cpu(), 1, generator=generator)]
        centers = torch.cat([centers, chosen])
        distances = torch.minimum(distances, (points - chosen).square().sum(dim=1))
    return centers


def _largest_means(points: Tensor, groups: Tensor, most: int) -> Tensor:
    """The means of the largest groups, at most so many, the lowest number first among equals."""
    sizes = torch.bincount(groups)
    largest = sizes.argsort(descending=True, stable=True)[:most]
    return torch.stack([points[groups == group].mean(dim=0) for group in largest if sizes[group]])


def _nearest(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance to the nearest centre and its index, in bounded memory."""
    parts = [torch.cdist(rows, centers).square().min(dim=1) for rows in points.split(_ROWS)]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


def _means(points: Tensor, labels: Tensor, distances: Tensor, clusters: int) -> Tensor:
    sums = points.new_zeros(clusters, points.shape[1]).index_add_(0, labels, points)
    sizes = torch.bincount(labels, minlength=clusters)
    empty = (sizes == 0).nonzero().squeeze(1)
    # An emptied cluster starts again at the points that fit worst.
    sums[empty] = points[distances.topk(max(1, len(empty))).indices[: len(empty)]]
    return sums / sizes.clamp_min(1)[:, None]
