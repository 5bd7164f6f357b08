"""Softmax regression against scipy's minimiser of the same objective, by its gradient and in small pieces."""

import pytest
import torch
from scipy.optimize import minimize
from torch.nn.functional import cross_entropy, normalize

from covervlm.server.clip.methods import linear
from covervlm.server.clip.methods.contracts import Examples, silent
from covervlm.server.clip.methods.linear import Linear, regress


def examples(n: int = 60, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 4
    x = normalize(torch.randn(4, 7, generator=generator)[y] + torch.randn(n, 7, generator=generator), dim=1)
    return x.to(dtype), y, torch.rand(n, generator=generator).to(dtype)


def objective(proxies, x, y, weights, strength):
    return (weights * cross_entropy(x @ proxies, y, reduction="none")).sum() + proxies.square().sum() / (2 * strength)


@pytest.mark.parametrize("strength", [0.3, 30.0])
def test_the_minimum_is_that_of_scipy(strength):
    x, y, weights = examples()

    def value(flat):
        proxies = torch.from_numpy(flat).reshape(7, 4).requires_grad_(True)
        loss = objective(proxies, x, y, weights, strength)
        loss.backward()
        return loss.item(), proxies.grad.numpy().ravel()

    found = minimize(value, torch.zeros(28).double().numpy(), jac=True, method="BFGS", options={"gtol": 1e-8})
    ours = regress(x, y, weights, 4, strength, 500, silent)
    torch.testing.assert_close(ours, torch.from_numpy(found.x).reshape(7, 4), atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_the_end_the_gradient_vanishes(dtype):
    x, y, _ = examples(dtype=dtype)
    head = Linear(strength=10.0, iterations=500).fit(Examples(x, labels=y))
    proxies = (head.proxies / head.temperature).requires_grad_(True)
    objective(proxies, x, y, torch.ones_like(y), 10.0).backward()
    assert float(proxies.grad.abs().max()) / len(x) < 3e-6


def test_scores_in_pieces_change_nothing(monkeypatch):
    x, y, weights = examples()
    whole = regress(x, y, weights, 4, 1.0, 50, silent)
    monkeypatch.setattr(linear, "_SCORES", 28)
    torch.testing.assert_close(regress(x, y, weights, 4, 1.0, 50, silent), whole, atol=1e-9, rtol=0)


def test_an_example_twice_is_an_example_of_weight_two():
    x, y, _ = examples()
    twice = regress(torch.cat([x, x[:9]]), torch.cat([y, y[:9]]), torch.ones(69).double(), 4, 1.0, 500, silent)
    weights = torch.ones(60).double()
    weights[:9] = 2
    torch.testing.assert_close(regress(x, y, weights, 4, 1.0, 500, silent), twice, atol=1e-4, rtol=0)
