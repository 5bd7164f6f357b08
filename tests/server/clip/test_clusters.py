"""k-means, silhouettes and the plotting plane against slow or independent versions."""

import numpy as np
import pytest
import torch

from covervlm.server.clip.methods.kmeans import choose_clusters, kmeans, principal_plane, silhouette


def blobs(clusters: int, per_cluster: int = 40, d: int = 8, spread: float = 0.3, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    centers = 4 * torch.randn(clusters, d, generator=generator)
    labels = torch.arange(clusters).repeat_interleave(per_cluster)
    return centers[labels] + spread * torch.randn(len(labels), d, generator=generator), labels


def same_partition(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a[:, None] == a[None], b[:, None] == b[None])


def test_kmeans_finds_separated_blobs_and_numbers_them_by_size():
    points, labels = blobs(5)
    keep = torch.cat([torch.arange(200)[labels == c][: 10 + 6 * c] for c in range(5)])
    found = kmeans(points[keep], 5)
    assert same_partition(found, labels[keep])
    sizes = torch.bincount(found).tolist()
    assert sizes == sorted(sizes, reverse=True)


def test_kmeans_ends_where_no_point_is_nearer_to_another_centre():
    points = torch.randn(300, 4, generator=torch.Generator().manual_seed(3))
    labels = kmeans(points, 6)
    centers = torch.stack([points[labels == c].mean(0) for c in range(6)])
    moved = (torch.cdist(points, centers).argmin(1) != labels).sum()
    assert moved <= 2


def test_kmeans_repeats_and_serves_degenerate_points():
    points, _ = blobs(3)
    assert torch.equal(kmeans(points, 3, seed=5), kmeans(points, 3, seed=5))
    assert kmeans(torch.ones(4, 2), 3).shape == (4,)
    assert kmeans(torch.randn(3, 2), 3).sort().values.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="5 clusters of 4 points"):
        kmeans(torch.ones(4, 2), 5)


def test_kmeans_from_groups_ends_at_the_optimum_beside_them_not_at_the_lowest():
    # Two aspects: x spreads wider than y, so any start finds the left and the right half, but groups by y lead to y.
    generator = torch.Generator().manual_seed(0)
    left, up = torch.randint(2, (400,), generator=generator), torch.randint(2, (400,), generator=generator)
    points = torch.stack([3.0 * left, 2.5 * up], dim=1) + 0.1 * torch.randn(400, 2, generator=generator)
    assert same_partition(kmeans(points, 2), left)
    mistaken = torch.where(torch.rand(400, generator=generator) < 0.1, 1 - up, up)
    assert same_partition(kmeans(points, 2, groups=mistaken), up)


def test_kmeans_takes_the_largest_groups_and_completes_too_few():
    points, labels = blobs(5)
    merged = torch.tensor([0, 0, 7, 7, 3])[labels]  # three groups, and numbers that are not used
    assert same_partition(kmeans(points, 5, groups=merged), labels)
    near = kmeans(points, 2, groups=torch.tensor([4, 4, 4, 2, 0])[labels])
    assert near.unique().tolist() == [0, 1]
    assert torch.equal(near, kmeans(points, 2, groups=torch.tensor([4, 4, 4, 2, 0])[labels], seed=9))


def test_silhouette_is_the_textbook_one():
    points = torch.randn(30, 3, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0] * 12 + [1] * 9 + [2] * 8 + [3])
    widths = []
    for i in range(30):
        mean = {
            c: [float((points[i] - points[j]).norm()) for j in range(30) if labels[j] == c and j != i] for c in range(4)
        }
        own = int(labels[i])
        if not mean[own]:
            widths.append(0.0)
            continue
        inside = np.mean(mean[own])
        nearest = min(np.mean(v) for c, v in mean.items() if c != own)
        widths.append((nearest - inside) / max(nearest, inside))
    assert silhouette(points, labels) == pytest.approx(np.mean(widths), abs=1e-5)


@pytest.mark.parametrize("clusters", [2, 4, 7])
def test_the_number_of_clusters_is_found(clusters):
    points, _ = blobs(clusters, spread=0.2, seed=clusters)
    assert choose_clusters(points) == clusters


def test_principal_plane_is_that_of_the_singular_value_decomposition():
    points = torch.randn(50, 6, generator=torch.Generator().manual_seed(2)) * torch.tensor([5.0, 3, 1, 1, 0.5, 0.1])
    centered = (points - points.mean(0)).numpy()
    u, s, _ = np.linalg.svd(centered, full_matrices=False)
    plane = principal_plane(points).numpy()
    np.testing.assert_allclose(np.abs(plane), np.abs(u[:, :2] * s[:2]), atol=1e-3)
    assert principal_plane(points[:1]).tolist() == [[0.0, 0.0]]
    assert principal_plane(torch.randn(5, 1)).shape == (5, 2)


def test_what_lies_close_together_far_from_the_origin_is_told_apart():
    """Unit vectors 1e-4 apart: in float32, their squared distances vanish beside their squared norms."""
    generator = torch.Generator().manual_seed(4)
    center = torch.nn.functional.normalize(torch.randn(64, generator=generator), dim=0)
    offsets = 1e-4 * torch.nn.functional.normalize(torch.randn(3, 64, generator=generator), dim=1)
    truth = torch.arange(3).repeat_interleave(20)
    points = center + offsets[truth] + 1e-6 * torch.randn(60, 64, generator=generator)
    assert same_partition(kmeans(points, 3), truth)
    assert choose_clusters(points) == 3
    exact = points.double()
    far = (exact[:, None] - exact[None]).norm(dim=2)
    inside = torch.stack([far[i][truth == truth[i]].sum() / 19 for i in range(60)])
    nearest = torch.stack([min(far[i][truth == c].mean() for c in range(3) if c != truth[i]) for i in range(60)])
    assert silhouette(points, truth) == pytest.approx(float(((nearest - inside) / nearest).mean()), abs=1e-6)


@pytest.mark.parametrize("noise", [0.0, 1e-30, 1e-8])
def test_the_plane_of_points_that_hardly_differ_is_finite(noise):
    points = 0.1 + noise * torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    plane = principal_plane(points)
    assert plane.shape == (6, 2)
    assert plane.isfinite().all()
    assert principal_plane(points.double()).dtype == torch.float64
