"""Points by what changed copies leave: the aspect that the change destroys falls to chance, the other stays."""

import torch
from frozen.augmentation import varying_directions, without_changes
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.clip.methods.kmeans import kmeans


def two_aspects(n: int = 240):
    """Images as a shape's direction plus a colour's; copies have another colour."""
    generator = torch.Generator().manual_seed(0)
    shapes, colors = (torch.randint(4, (n,), generator=generator) for _ in range(2))
    basis = torch.linalg.qr(torch.randn(20, 8, generator=generator, dtype=torch.float64)).Q

    def seen(color: Tensor) -> Tensor:
        noise = 0.1 * torch.randn(n, 20, generator=generator, dtype=torch.float64)
        return normalize(basis.T[shapes] + 1.3 * basis.T[4 + color] + noise, dim=1)

    copies = torch.stack([seen(torch.randint(4, (n,), generator=generator)) for _ in range(4)], dim=1)
    return seen(colors), copies, shapes, colors


def agreement(labels: Tensor, truth: Tensor) -> float:
    """The share of pictures in groups whose commonest value is theirs."""
    counts = torch.zeros(4, 4).index_put_((labels, truth), torch.ones(len(labels)), accumulate=True)
    return float(counts.max(dim=1).values.sum() / len(labels))


def test_groups_follow_what_the_copies_share_and_not_what_they_change():
    images, copies, shapes, colors = two_aspects()
    points = without_changes(images, copies)
    labels = kmeans(points, 4)
    assert agreement(labels, shapes) > 0.95
    assert agreement(labels, colors) < 0.45
    torch.testing.assert_close(points.norm(dim=1), torch.ones(240).double())
    plain = kmeans(images, 4)
    assert agreement(plain, colors) > agreement(plain, shapes)


def test_the_directions_are_the_fewest_that_hold_their_share_of_the_variance():
    differences = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)).double() * torch.arange(6, 0, -1)
    whole = differences.square().sum()
    for share in (0.3, 0.7, 0.95):
        directions = varying_directions(differences, share)
        count = directions.shape[1]
        torch.testing.assert_close(directions.T @ directions, torch.eye(count).double())
        assert (differences @ directions).square().sum() >= share * whole
        assert (differences @ directions[:, : count - 1]).square().sum() < share * whole


def test_copies_that_do_not_differ_remove_nothing():
    images, *_ = two_aspects()
    torch.testing.assert_close(without_changes(images, images[:, None]), images)
    assert varying_directions(torch.zeros(5, 3), 0.9).shape == (3, 0)
