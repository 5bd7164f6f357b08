"""TeS against the released program's outputs, closed-form gradients, and softmax regression."""

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize, one_hot

from covervlm.server.clip.methods import tes
from covervlm.server.clip.methods.contracts import Examples

cases = pytest.mark.parametrize("case", range(3))


def weights(g):
    return {"tau": g.tau, "lambda_v": g.lambda_v, "lambda_t": g.lambda_t}


@cases
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_the_loss_its_labels_and_its_gradients_are_those_of_the_reference(golden, case, dtype, rtol):
    g = golden("tes", case, dtype)
    logits, projection = (t.clone().requires_grad_(True) for t in (g.logits, g.projection))
    value = tes.loss(logits, projection, g.text, g.y, **weights(g))
    value.backward()
    assert value.dtype == dtype
    assert value.item() == pytest.approx(g.loss, rel=rtol)
    soft = tes.soft_labels(g.projection, g.text, g.y, tau=g.tau, lambda_v=g.lambda_v)
    torch.testing.assert_close(soft, g.soft_labels, rtol=rtol, atol=rtol)
    torch.testing.assert_close(logits.grad, g.grad_logits, rtol=rtol, atol=rtol / 10)
    torch.testing.assert_close(projection.grad, g.grad_projection, rtol=rtol, atol=rtol)


@cases
def test_gradients_have_the_closed_forms(golden, case):
    g = golden("tes", case)
    logits, projection = (t.clone().requires_grad_(True) for t in (g.logits, g.projection))
    tes.loss(logits, projection, g.text, g.y, **weights(g)).backward()
    seen = torch.softmax(g.projection @ g.text.T / g.tau, dim=1)
    truth = one_hot(g.y, g.classes).double()
    soft = g.lambda_v * seen + (1 - g.lambda_v) * truth
    torch.testing.assert_close(soft.sum(1), torch.ones(g.n, dtype=torch.float64))
    torch.testing.assert_close(logits.grad, (torch.softmax(g.logits, dim=1) - soft) / g.n)
    torch.testing.assert_close(projection.grad, g.lambda_t / g.tau * (seen - truth) @ g.text / g.n)


def test_without_both_weights_it_is_softmax_regression(golden):
    g = golden("tes", 0)
    bare = tes.loss(g.logits, g.projection, g.text, g.y, tau=0.5, lambda_v=0.0, lambda_t=0.0)
    torch.testing.assert_close(bare, cross_entropy(g.logits, g.y))


def test_labels_are_softened_for_each_example_and_not_for_each_class(golden):
    g = golden("tes", 0)
    soft = tes.soft_labels(g.projection, g.text, torch.zeros_like(g.y), tau=g.tau, lambda_v=0.2)
    assert float((soft - soft[0]).abs().max()) > 0.01


@pytest.mark.parametrize("output", ["classes", "text"])
def test_both_heads_learn_classes_that_text_alone_confuses(output):
    generator = torch.Generator().manual_seed(5)
    text = normalize(torch.randn(10, 4, generator=generator), dim=0)
    turned = torch.linalg.qr(torch.randn(10, 10, generator=generator)).Q
    y = torch.arange(60) % 4
    x = normalize(text.T[y] @ turned + 0.1 * torch.randn(60, 10, generator=generator), dim=1)
    head = tes.TeS(output=output).fit(Examples(x, text, y))
    assert ((x @ text).argmax(1) == y).float().mean() < 0.6
    assert (head.logits(x).argmax(1) == y).float().mean() > 0.95
