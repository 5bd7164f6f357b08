"""Group weights against reference outputs of the same formulas, and against what those imply."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.nn.functional import cross_entropy, normalize

from covervlm.server.clip.methods.contracts import Examples
from covervlm.server.clip.methods.groups import Groups, balanced_weights, best_response, onto_simplex, play

cases = pytest.mark.parametrize("case", range(3))


def played(g):
    return play(
        g.x,
        g.y,
        g.concept,
        g.w0,
        g.order,
        rate=g.eta_theta,
        group_rate=g.eta_p,
        lambda_p=g.lambda_p,
        lambda_w=g.lambda_w or float("inf"),
        regulariser=g.regulariser,
    )


@cases
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_every_step_is_that_of_the_reference(golden, case, dtype, atol):
    g = golden("robust", case, dtype)
    w, weights, losses = played(g)
    for ours, theirs in ((w, g.w), (weights, g.p), (losses, g.losses)):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=atol)


@pytest.mark.parametrize("case", [0, 1])
def test_the_best_response_is_that_of_the_reference_and_no_weights_do_better(golden, case):
    g = golden("robust", case)
    response = best_response(g.concept_losses, lambda_p=g.lambda_p)
    torch.testing.assert_close(response, g.best_response, atol=1e-8, rtol=0)

    def value(p):
        return p @ g.concept_losses - g.lambda_p * (p * (p * len(p)).log()).sum()

    highest = g.lambda_p * torch.log(torch.exp(g.concept_losses / g.lambda_p).mean())
    torch.testing.assert_close(value(response), highest)
    for p in torch.distributions.Dirichlet(torch.ones(len(response)).double()).sample((200,)):
        assert value(p) <= highest + 1e-12


def test_the_best_response_goes_from_balanced_to_the_worst_group():
    losses = torch.tensor([0.3, 0.9, 0.5], dtype=torch.float64)
    torch.testing.assert_close(best_response(losses, lambda_p=1e9), torch.full_like(losses, 1 / 3))
    torch.testing.assert_close(best_response(losses, lambda_p=1e-3), torch.tensor([0.0, 1, 0]).double())


def test_the_simplex_projection_is_the_nearest_point():
    values = np.random.default_rng(0).normal(0, 1, (20, 5))
    for row in values:
        nearest = minimize(
            lambda p, row=row: ((p - row) ** 2).sum(),
            np.full(5, 0.2),
            bounds=[(0, 1)] * 5,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(onto_simplex(torch.from_numpy(row)).numpy(), nearest.x, atol=1e-6)


def test_batches_of_one_give_the_balanced_gradient_on_average():
    """By enumeration: the mean of the weighted gradients of single examples is the mean over groups."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(9, 4, generator=generator).double(), torch.randn(3, 4, generator=generator).double()
    y, groups = torch.arange(9) % 3, torch.tensor([0] * 6 + [1] * 2 + [2])
    largest = float((balanced_weights(groups)).max())
    steps = []
    for row in range(9):
        one = torch.tensor([[row]])
        moved, *_ = play(x, y, groups, w, one, rate=largest, group_rate=0.0, lambda_p=0.0)
        steps.append(w - moved)
    head = w.clone().requires_grad_(True)
    each = cross_entropy(x @ head.T, y, reduction="none")
    torch.stack([each[groups == k].mean() for k in range(3)]).mean().backward()
    torch.testing.assert_close(torch.stack(steps).mean(0), head.grad)


def test_balanced_weights_have_the_same_sum_in_every_group_and_mean_one():
    groups = torch.tensor([4, 4, 4, 4, 4, 0, 7, 7])
    weights = balanced_weights(groups)
    sums = [float(weights[groups == k].sum()) for k in (0, 4, 7)]
    assert sums == pytest.approx([8 / 3] * 3)
    assert float(weights.mean()) == pytest.approx(1)


def test_a_small_group_is_served_better_than_by_the_plain_head():
    generator = torch.Generator().manual_seed(1)
    groups = torch.tensor([0] * 190 + [1] * 10)
    y = torch.arange(200) % 2
    side = y * 2 - 1.0
    clean = torch.stack([side * (1 - 2 * groups), side * groups * 0.5, groups], dim=1)
    x = normalize(clean + 0.8 * torch.randn(200, 3, generator=generator), dim=1)

    def worst(given):
        labels = Groups().fit(given).logits(x).argmax(1)
        return min(float((labels == y)[groups == k].float().mean()) for k in (0, 1))

    assert worst(Examples(x, labels=y, groups=groups)) > worst(Examples(x, labels=y, groups=torch.zeros_like(y)))
