"""Text-guided mixup and its loss against the released program's outputs, and what the definition implies."""

import pytest
import torch
from scipy.stats import chisquare
from torch.nn.functional import cross_entropy, normalize, one_hot

from covervlm.server.clip.methods import margin
from covervlm.server.clip.methods.contracts import Examples
from covervlm.server.clip.methods.margin import Margin
from covervlm.server.clip.methods.text_mixup import Partners, TextMixup, mixed_labels, partner_probabilities

cases = pytest.mark.parametrize("case", range(3))
dtypes = pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])


@cases
@dtypes
def test_partner_probabilities_are_those_of_the_reference(golden, case, dtype, rtol):
    g = golden("text_mixup", case, dtype)
    ours = partner_probabilities(g.text, tau=g.tau)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, g.partner_probability, rtol=rtol, atol=rtol / 100)


@cases
def test_mixtures_and_their_labels_are_those_of_the_reference(golden, case):
    g = golden("text_mixup", case)
    torch.testing.assert_close(g.lambda_x * g.x_i + (1 - g.lambda_x) * g.x_j, g.x_mixed, atol=1e-12, rtol=0)
    labels = mixed_labels(g.y_i, g.y_j, g.freq, g.lambda_x, alpha=g.alpha)
    torch.testing.assert_close(labels, g.y_mixed, atol=1e-12, rtol=0)


@cases
@dtypes
def test_the_loss_and_its_gradients_are_those_of_the_reference(golden, case, dtype, rtol):
    g = golden("text_mixup", case, dtype)
    w = g.w.clone().requires_grad_(True)
    logits = normalize(g.x_mixed @ w.T, dim=1) @ normalize(g.text, dim=1).T
    torch.testing.assert_close(logits, g.logits, rtol=rtol, atol=rtol)
    logits.retain_grad()
    settings = {"margin": g.margin, "temperature": g.temperature}
    value = margin.loss(logits, g.text, g.y_mixed, **settings)
    value.backward()
    assert value.dtype == dtype
    assert value.item() == pytest.approx(g.loss_mixed, rel=rtol)
    assert margin.loss(logits, g.text, g.y_i, **settings).item() == pytest.approx(g.loss_hard_labels_y_i, rel=rtol)
    for ours, theirs in ((logits.grad, g.grad_logits), (w.grad, g.grad_w)):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < rtol


def test_partners_exclude_the_class_itself_and_go_from_the_nearest_to_all_alike():
    text = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for tau in (0.05, 1.0):
        probabilities = partner_probabilities(text, tau=tau)
        assert (probabilities.diag() == 0).all()
        torch.testing.assert_close(probabilities.sum(1), torch.ones(6, dtype=torch.float64))
    unit = normalize(text, dim=1)
    nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1)
    torch.testing.assert_close(partner_probabilities(text, tau=1e-5), one_hot(nearest, 6).double())
    flat = (1 - torch.eye(6, dtype=torch.float64)) / 5
    torch.testing.assert_close(partner_probabilities(text, tau=1e9), flat)


def test_classes_of_equal_size_share_the_label_as_the_mixture():
    labels = mixed_labels(torch.tensor([0, 1]), torch.tensor([2, 2]), torch.full((3,), 7), 0.3, alpha=1.5)
    torch.testing.assert_close(labels, torch.tensor([[0.3, 0, 0.7], [0, 0.3, 0.7]], dtype=torch.float64))


def test_exchanging_both_examples_and_their_shares_changes_no_label():
    y, partner, counts = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]), torch.tensor([50, 4, 9])
    one = mixed_labels(y, partner, counts, 0.3, alpha=0.8)
    other = mixed_labels(partner, y, counts, 0.7, alpha=0.8)
    torch.testing.assert_close(one, other)


def test_partner_classes_are_drawn_as_often_as_they_should():
    y = torch.arange(12) % 4
    text = torch.randn(4, 5, generator=torch.Generator().manual_seed(2))
    probabilities = partner_probabilities(text, tau=0.7)
    drawn = Partners(y, probabilities, seed=3).draw(torch.zeros(6000, dtype=torch.int64))
    seen = torch.bincount(y[drawn], minlength=4)
    assert seen[0] == 0
    assert chisquare(seen[1:].numpy(), 6000 * probabilities[0, 1:].double().numpy(), sum_check=False).pvalue > 0.01


def test_an_example_is_a_partner_again_only_after_all_others_of_its_class():
    y = torch.tensor([0] * 5 + [1] * 7)
    drawn = Partners(y, partner_probabilities(torch.eye(2), tau=1.0), seed=0).draw(torch.zeros(70, dtype=torch.int64))
    for cycle in drawn.split(7):
        assert sorted(cycle.tolist()) == list(range(5, 12))


def test_classes_without_examples_are_no_partners_and_a_class_alone_is_its_own():
    text = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    probabilities = partner_probabilities(text, tau=1.0)
    y = torch.tensor([0, 0, 2])
    assert set(Partners(y, probabilities, seed=0).draw(torch.zeros(50, dtype=torch.int64)).tolist()) == {2}
    alone = torch.tensor([1, 1, 1])
    assert Partners(alone, probabilities, seed=0).draw(torch.arange(3)).tolist() == [0, 1, 2]


def test_without_margin_it_is_cross_entropy_of_cosines_at_the_temperature():
    generator = torch.Generator().manual_seed(0)
    cosines, text = torch.rand(9, 4, generator=generator) - 0.5, torch.randn(4, 6, generator=generator)
    y = torch.arange(9) % 4
    plain = cross_entropy(cosines / 0.07, y)
    torch.testing.assert_close(margin.loss(cosines, text, y, margin=0.0, temperature=0.07), plain)
    shares = one_hot(y, 4).float()
    for width in (0.0, 0.3):
        hard, soft = (margin.loss(cosines, text, labels, margin=width, temperature=0.07) for labels in (y, shares))
        torch.testing.assert_close(hard, soft)


def test_a_class_less_like_the_true_one_starts_further_ahead():
    text = torch.tensor([[1.0, 0], [0.8, 0.6], [0, 1]])
    cosines, true = torch.zeros(1, 3), torch.tensor([0])
    expected = torch.logsumexp(torch.tensor([0.0, 0.3 * 0.2, 0.3]), dim=0)
    torch.testing.assert_close(margin.loss(cosines, text, true, margin=0.3, temperature=1.0), expected)


@pytest.mark.parametrize("method", [Margin, TextMixup])
def test_the_head_labels_as_the_cosines_of_the_learned_map_would(method):
    """And it separates classes that text alone confuses."""
    generator = torch.Generator().manual_seed(5)
    text = normalize(torch.randn(10, 4, generator=generator), dim=0)
    turned = torch.linalg.qr(torch.randn(10, 10, generator=generator)).Q
    y = torch.arange(60) % 4
    x = normalize(text.T[y] @ turned + 0.1 * torch.randn(60, 10, generator=generator), dim=1)
    head = method(epochs=200).fit(Examples(x, text, y))
    assert ((x @ text).argmax(1) == y).float().mean() < 0.6
    assert (head.logits(x).argmax(1) == y).float().mean() > 0.95
