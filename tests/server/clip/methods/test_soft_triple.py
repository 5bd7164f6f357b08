"""SoftTriple against the released program's outputs, the definition in plain loops, and its limits."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from covervlm.server.clip.methods import soft_triple
from covervlm.server.clip.methods.contracts import Examples

cases = pytest.mark.parametrize("case", range(3))
DEFAULTS = {"scale": 20.0, "gamma": 0.1, "tau": 0.2, "margin": 0.01}


def batch(n: int = 14, d: int = 6, classes: int = 3, each: int = 4):
    generator = torch.Generator().manual_seed(n)
    x = normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1)
    return x, torch.randn(d, classes * each, generator=generator, dtype=torch.float64), torch.arange(n) % classes


@cases
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_value_similarity_and_gradients_are_those_of_the_reference(golden, case, dtype, rtol):
    g = golden("softtriple", case, dtype)
    x, centers = (t.clone().requires_grad_(True) for t in (g.x, g.centers))
    value = soft_triple.loss(x, centers, g.y, classes=g.classes, scale=g.la, gamma=g.gamma, tau=g.tau, margin=g.margin)
    value.backward()
    assert value.dtype == dtype
    assert value.item() == pytest.approx(g.loss, rel=rtol)
    similarity = soft_triple.similarity(g.x, g.centers, classes=g.classes, gamma=g.gamma)
    torch.testing.assert_close(similarity, g.similarity, rtol=rtol, atol=rtol)
    assert torch.equal(similarity.argmax(1), g.prediction)
    for ours, theirs in ((x.grad, g.grad_x), (centers.grad, g.grad_centers)):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < rtol


def test_the_loss_follows_the_definition_in_plain_loops():
    x, centers, y = batch()
    unit = [column / column.norm() for column in centers.T]
    total = 0.0
    for row, label in zip(x, y.tolist(), strict=True):
        logits = []
        for c in range(3):
            cosines = [float(row @ unit[4 * c + k]) for k in range(4)]
            shares = [math.exp(s / 0.1) for s in cosines]
            similarity = sum(p * s for p, s in zip(shares, cosines, strict=True)) / sum(shares)
            logits.append(20 * (similarity - 0.01 * (c == label)))
        total += math.log(sum(map(math.exp, logits))) - logits[label]
    pairs = [(4 * c + j, 4 * c + k) for c in range(3) for j in range(4) for k in range(j + 1, 4)]
    apart = sum(math.sqrt(2 + 1e-5 - 2 * float(unit[j] @ unit[k])) for j, k in pairs) / (3 * 4 * 3)
    ours = soft_triple.loss(x, centers, y, classes=3, **DEFAULTS)
    assert float(ours) == pytest.approx(total / len(x) + 0.2 * apart, rel=1e-12)


def test_one_centre_is_the_normalised_softmax_and_equal_centres_are_one():
    x, centers, y = batch(each=1)
    plain = cross_entropy(20 * x @ normalize(centers, dim=0), y)
    one = soft_triple.loss(x, centers, y, classes=3, scale=20, gamma=0.1, tau=0.2, margin=0)
    torch.testing.assert_close(one, plain)
    many = soft_triple.loss(x, centers.repeat_interleave(5, dim=1), y, classes=3, scale=20, gamma=0.1, tau=0, margin=0)
    torch.testing.assert_close(many, plain)


def test_the_regulariser_falls_as_centres_merge_and_has_a_gradient_where_they_have_merged():
    x, centers, y = batch()
    mean = centers.unflatten(1, (3, 4)).mean(dim=2).repeat_interleave(4, dim=1)
    without = {**DEFAULTS, "tau": 0.0}

    def regulariser(merged: float) -> float:
        there = torch.lerp(centers, mean, merged)
        values = [soft_triple.loss(x, there, y, classes=3, **settings) for settings in (DEFAULTS, without)]
        return float(values[0] - values[1])

    steps = [regulariser(share) for share in (0, 0.3, 0.6, 0.9, 1)]
    assert steps == sorted(steps, reverse=True)
    merged = mean.clone().requires_grad_(True)
    soft_triple.loss(x, merged, y, classes=3, **DEFAULTS).backward()
    assert merged.grad.isfinite().all()


@pytest.mark.parametrize("each", [1, 3])
def test_the_learned_space_serves_classes_that_it_never_saw(each):
    """Classes differ in half of the dimensions; the other half is strong noise."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(640) % 16
    noise = torch.randn(640, 16, generator=generator) * torch.tensor([0.2] * 8 + [2.0] * 8)
    x = normalize(torch.cat([torch.randn(16, 8, generator=generator)[y], torch.zeros(640, 8)], dim=1) + noise, dim=1)
    seen = y < 8
    learned = soft_triple.SoftTriple(centers=each).fit(Examples(x[seen], labels=y[seen])).embed(x[~seen])

    def recall(points):
        return float((y[~seen][(points @ points.T).fill_diagonal_(-2).argmax(1)] == y[~seen]).float().mean())

    assert recall(learned) > recall(x[~seen]) + 0.05


def test_fewer_dimensions_start_from_the_principal_ones_and_more_are_refused():
    x, _, y = batch()
    assert soft_triple.SoftTriple(dimensions=2, epochs=1).fit(Examples(x, labels=y)).matrix.shape == (2, 6)
    start = soft_triple.principal_directions(x, 2)
    torch.testing.assert_close(start @ start.T, torch.eye(2, dtype=torch.float64))
    values = torch.linalg.svdvals(x)
    torch.testing.assert_close((x @ start.T).norm(dim=0), values[:2])
    with pytest.raises(ValueError, match="6 dimensions cannot be projected to 7"):
        soft_triple.SoftTriple(dimensions=7).fit(Examples(x, labels=y))
