"""Groups by what changed copies leave: the aspect that the change destroys falls to chance, the other stays."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.clip.methods.augmentation import Augmentation, varying_directions
from covervlm.server.clip.methods.contracts import Pictures


class Words:
    def encode(self, word: Tensor) -> Tensor:
        return word


def two_aspects(n: int = 240):
    """Pictures as a shape's direction plus a colour's; copies have another colour."""
    generator = torch.Generator().manual_seed(0)
    shapes, colors = (torch.randint(4, (n,), generator=generator) for _ in range(2))
    basis = torch.linalg.qr(torch.randn(20, 8, generator=generator, dtype=torch.float64)).Q

    def seen(color: Tensor) -> Tensor:
        noise = 0.1 * torch.randn(n, 20, generator=generator, dtype=torch.float64)
        return basis.T[shapes] + 1.3 * basis.T[4 + color] + noise

    copies = torch.stack([seen(torch.randint(4, (n,), generator=generator)) for _ in range(4)], dim=1)
    words = basis.T[:4]
    return Pictures(seen(colors), torch.eye(20).double(), Words(), words[0], words, copies), shapes, colors


def agreement(labels: Tensor, truth: Tensor) -> float:
    """The share of pictures in groups whose commonest value is theirs."""
    counts = torch.zeros(4, 4).index_put_((labels, truth), torch.ones(len(labels)), accumulate=True)
    return float(counts.max(dim=1).values.sum() / len(labels))


def test_groups_follow_what_the_copies_share_and_not_what_they_change():
    pictures, shapes, colors = two_aspects()
    found = Augmentation().group(pictures, 4)
    assert agreement(found.labels, shapes) > 0.95
    assert agreement(found.labels, colors) < 0.45
    assert found.points.dtype == torch.float64
    torch.testing.assert_close(found.points.norm(dim=1), torch.ones(240).double())
    plain = Augmentation(removed=0.0).group(replace(pictures, copies=pictures.hidden[:, None]), 4)
    assert agreement(plain.labels, colors) > agreement(plain.labels, shapes)


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
    pictures, *_ = two_aspects()
    same = Augmentation().place(replace(pictures, copies=pictures.hidden[:, None]), seed=0, progress=lambda *_: None)
    torch.testing.assert_close(same.points, normalize(pictures.hidden, dim=1))
    assert varying_directions(torch.zeros(5, 3), 0.9).shape == (3, 0)


def test_without_copies_it_is_refused():
    pictures, *_ = two_aspects(8)
    with pytest.raises(ValueError, match="changed copies"):
        Augmentation().group(replace(pictures, copies=None), 2)


def test_one_picture_is_a_group_and_a_seed_repeats_the_groups():
    pictures, *_ = two_aspects()
    one = replace(pictures, hidden=pictures.hidden[:1], copies=pictures.copies[:1])
    assert Augmentation().group(one, 1).labels.tolist() == [0]
    first, second = (Augmentation().group(pictures, 4, seed=3).labels for _ in range(2))
    assert torch.equal(first, second)
