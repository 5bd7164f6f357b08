"""CoIns against a step of the released program, and what its definition implies."""

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from covervlm.server.clip.methods import coins
from covervlm.server.clip.methods.coins import CoIns, Queue, follow
from covervlm.server.clip.methods.contracts import Examples

cases = pytest.mark.parametrize("case", range(2))


@cases
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_a_step_is_that_of_the_reference(golden, case, dtype, rtol):
    g = golden("coins", case, dtype)
    matrix, centers = (t.clone().requires_grad_(True) for t in (g.w_query, g.coarse_centers))
    slow = g.w_key_before.clone()
    follow(slow, matrix, g.momentum)
    torch.testing.assert_close(slow, g.w_key_after, rtol=rtol, atol=rtol)
    keys = normalize(g.view2 @ slow.T, dim=1)
    query = normalize(g.view1 @ matrix.T, dim=1)
    settings = {"temperature": g.temperature}
    value = coins.loss(query, keys, g.queue_before, centers, g.y_coarse, weight=g.coarse_weight, **settings)
    assert value.dtype == dtype
    assert value.item() == pytest.approx(g.loss, rel=rtol)
    instance = coins.loss(query, keys, g.queue_before, centers, g.y_coarse, weight=0.0, **settings)
    assert instance.item() == pytest.approx(g.instance_loss, rel=rtol)
    value.backward()
    for ours, theirs in ((matrix.grad, g.grad_w_query), (centers.grad, g.grad_coarse_centers)):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < rtol
    queue = Queue(g.queue_before)
    queue.push(keys)
    torch.testing.assert_close(queue.keys, g.queue_after, rtol=rtol, atol=rtol)


def test_without_coarse_weight_each_key_is_told_from_the_queue_and_keys_get_no_gradient():
    generator = torch.Generator().manual_seed(0)
    query, keys, queue = (normalize(torch.randn(n, 5, generator=generator), dim=1) for n in (6, 6, 9))
    logits = torch.stack([torch.cat([(q @ k)[None], queue @ q]) for q, k in zip(query, keys, strict=True)]) / 0.3
    keys.requires_grad_(True)
    query.requires_grad_(True)
    centers, y = torch.randn(5, 3, generator=generator), torch.arange(6) % 3
    value = coins.loss(query, keys, queue.T, centers, y, temperature=0.3, weight=0.0)
    torch.testing.assert_close(value, cross_entropy(logits, torch.zeros(6, dtype=torch.int64)))
    value.backward()
    assert keys.grad is None


def test_turning_everything_together_leaves_the_loss():
    generator = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    query, keys, queue = (normalize(torch.randn(n, 5, generator=generator).double(), dim=1) for n in (6, 6, 9))
    centers, y = torch.randn(5, 3, generator=generator).double(), torch.arange(6) % 3
    one = coins.loss(query, keys, queue.T, centers, y, temperature=0.2, weight=0.5)
    turned = coins.loss(query @ turn, keys @ turn, (queue @ turn).T, turn.T @ centers, y, temperature=0.2, weight=0.5)
    torch.testing.assert_close(one, turned)


def test_the_oldest_keys_leave_the_queue_first():
    queue = Queue(torch.arange(5.0)[None])
    for number in (10.0, 20.0, 30.0):
        queue.push(torch.tensor([[number], [number + 1]]))
    assert queue.keys.flatten().tolist() == [31, 11, 20, 21, 30]
    queue.push(torch.arange(100.0, 108.0)[:, None])
    assert sorted(queue.keys.flatten().tolist()) == [103, 104, 105, 106, 107]


def test_one_view_twice_is_refused():
    x = normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    with pytest.raises(ValueError, match="two different views"):
        CoIns().fit(Examples(x, labels=torch.arange(8) % 2, second_views=x.clone()))
