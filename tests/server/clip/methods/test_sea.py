"""SeA against the released program's outputs, autograd, and its definition in plain loops."""

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from covervlm.server.clip.methods.contracts import Examples
from covervlm.server.clip.methods.sea import SeA, semantic_directions, train

cases = pytest.mark.parametrize("case", range(3))


def trained(g, epochs: int = 4, **changes):
    given = {"lr": g.lr, "momentum": g.momentum, "weight_decay": g.tau, "alpha": g.alpha, "delta": g.delta}
    given |= {"eta": g.eta, "lam": g.lamda, "batch_size": g.batch_size} | changes
    return train(g.x, g.y, g.w0, g.order[:epochs], **given)


def first_batch(g):
    rows = g.order[0, : g.batch_size]
    return g.x[rows], g.y[rows]


def random_batch(n: int = 12, d: int = 30, classes: int = 5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n)
    x = normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1)
    w = torch.randn(classes, d, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.arange(n) % classes, w.to(dtype)


def adversarial(x, y, w, delta: float, lam: float):
    """By autograd: the unit gradient of lam * CE for each row."""
    x = x.clone().requires_grad_(True)
    logits = (x @ w.T).scatter_add(1, y[:, None], torch.full((len(y), 1), -delta, dtype=x.dtype))
    (gradient,) = torch.autograd.grad(lam * cross_entropy(logits / lam, y, reduction="sum"), x)
    return gradient / gradient.norm(dim=1, keepdim=True)


@cases
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_directions_are_those_of_the_reference(golden, case, dtype, atol):
    g = golden("sea", case, dtype)
    directions = semantic_directions(*first_batch(g), g.w0, alpha=g.alpha, delta=g.delta, lam=g.lamda)
    assert directions.dtype == dtype
    torch.testing.assert_close(directions, g.direction, atol=atol, rtol=0)


@cases
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-2)])
def test_heads_after_every_epoch_are_those_of_the_reference(golden, case, dtype, tolerance):
    g = golden("sea", case, dtype)
    for epochs in range(1, 5):
        w = trained(g, epochs)
        assert w.dtype == dtype
        assert float((w - g.w[epochs - 1]).abs().max() / g.w[epochs - 1].abs().max()) < tolerance
    accuracy = 100 * ((g.x_test @ trained(g).T).argmax(1) == g.y_test).double().mean()
    assert float(accuracy) == pytest.approx(g.accuracy_test)


@cases
def test_the_gradient_of_the_first_step_is_that_of_the_reference(golden, case):
    g = golden("sea", case)
    rows = g.order[:1, : g.batch_size]
    moved = train(
        g.x, g.y, g.w0, rows, lr=1, momentum=0, weight_decay=0, alpha=g.alpha, delta=g.delta, eta=g.eta, lam=g.lamda,
        batch_size=g.batch_size,
    )  # fmt: skip
    torch.testing.assert_close(g.w0 - moved, g.grad, atol=1e-8, rtol=0)


def test_directions_follow_the_definition_in_plain_loops():
    x, y, w = random_batch()
    gradient = adversarial(x, y, w, 0.1, 0.3)
    for i, direction in enumerate(semantic_directions(x, y, w, alpha=0.2, delta=0.1, lam=0.3)):
        others = [j for j in range(len(x)) if j != i]
        shares = torch.softmax(torch.stack([gradient[i] @ x[j] / 0.2 for j in others]), dim=0)
        mixture = sum(share * x[j] for share, j in zip(shares, others, strict=True))
        torch.testing.assert_close(direction, mixture / mixture.norm(), atol=1e-12, rtol=0)


def test_a_direction_lies_in_the_span_of_the_other_rows():
    x, y, w = random_batch()
    for i, direction in enumerate(semantic_directions(x, y, w, alpha=0.05, delta=0.0, lam=0.1)):
        others = torch.cat([x[:i], x[i + 1 :]]).T
        fitted = torch.linalg.lstsq(others, direction[:, None]).solution
        torch.testing.assert_close((others @ fitted).squeeze(1), direction, atol=1e-10, rtol=0)


def test_scaling_the_loss_changes_no_direction():
    """Logits and lam scaled alike keep the probabilities and scale the loss."""
    x, y, w = random_batch()
    one = semantic_directions(x, y, w, alpha=0.05, delta=0.1, lam=0.1)
    scaled = semantic_directions(x, y, 7 * w, alpha=0.05, delta=0.7, lam=0.7)
    torch.testing.assert_close(one, scaled, atol=1e-12, rtol=0)


def test_without_eta_it_is_softmax_regression_by_sgd():
    x, y, w = random_batch(40)
    order = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(e)) for e in range(3)])
    ours = train(
        x, y, w, order, lr=0.5, momentum=0.9, weight_decay=1e-2, alpha=1, delta=0, eta=0, lam=0.2, batch_size=16
    )
    theirs = w.clone().requires_grad_(True)
    optimizer = torch.optim.SGD([theirs], lr=0.5, momentum=0.9, weight_decay=1e-2)
    for epoch in order:
        for rows in epoch.split(16):
            optimizer.zero_grad()
            (0.2 * cross_entropy(x[rows] @ theirs.T / 0.2, y[rows])).backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_are_sure_of_their_class_mix_the_others_all_alike_and_a_batch_of_one_nothing(dtype):
    x, y, w = random_batch(3, classes=3, dtype=dtype)
    sure = semantic_directions(x, torch.zeros_like(y), 0 * w, alpha=1e-9, delta=0, lam=1)
    assert sure.isfinite().all()
    flat = semantic_directions(x, (x @ w.T).argmax(1), 1e9 * w, alpha=0.01, delta=0, lam=1)
    torch.testing.assert_close(flat[0], normalize(x[1] + x[2], dim=0))
    assert torch.equal(semantic_directions(x[:1], y[:1], w, alpha=0.01, delta=0, lam=0.1), torch.zeros_like(x[:1]))


def test_small_residuals_of_sure_rows_keep_their_direction_in_float32():
    x, _, w = random_batch()
    y, sharp = (x @ w.T).argmax(1), 12 * w
    exact = semantic_directions(x, y, sharp, alpha=0.5, delta=0, lam=1)
    ours = semantic_directions(x.float(), y, sharp.float(), alpha=0.5, delta=0, lam=1)
    torch.testing.assert_close(ours.double(), exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("epochs", "steps", "learned"), [(100, 2000, 100), (100, 20, 5), (2, 20, 2), (100, 23, 5), (9, 1, 1)]
)
def test_it_ends_after_its_epochs_or_the_last_whole_one_of_its_steps(epochs, steps, learned):
    """Four steps an epoch."""
    x, y, _ = random_batch(50)
    seen = []
    fitted = SeA(epochs=epochs, steps=steps, batch_size=16).fit(
        Examples(x, labels=y), seed=3, progress=lambda share, /, **figures: seen.append((share, figures["epoch"]))
    )
    assert seen[-1] == (1.0, learned)
    alone = SeA(epochs=learned, batch_size=16).fit(Examples(x, labels=y), seed=3)
    assert torch.equal(fitted.proxies, alone.proxies)
