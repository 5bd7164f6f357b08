"""OpenBox against reference outputs, autograd, and points inside and across the facets of its region."""

from itertools import pairwise

import pytest
import torch
from torch.nn.functional import leaky_relu, normalize

from covervlm.server.clip.methods.contracts import Head, Network
from covervlm.server.clip.methods.openbox import OpenBox, in_words, linear_form, region

cases = pytest.mark.parametrize("case", range(3))


def layers(g):
    return [getattr(g, f"w{i}") for i in range(g.layers)], [getattr(g, f"b{i}") for i in range(g.layers)]


def forward(weights, biases, x, slope):
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = leaky_relu(weight @ x + bias, slope)
    return weights[-1] @ x + biases[-1]


@cases
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_form_region_and_distance_are_those_of_the_reference(golden, case, dtype, tolerance):
    g = golden("openbox", case, dtype)
    close = {"rtol": tolerance, "atol": tolerance}
    for row, x in enumerate(g.x):
        form = linear_form(*layers(g), x, negative_slope=g.negative_slope)
        assert form[0].dtype == dtype
        torch.testing.assert_close(form, (g.weights[row], g.offsets[row]), **close)
        torch.testing.assert_close(form[0] @ x + form[1], g.logits[row], **close)
        found = region(*layers(g), x, negative_slope=g.negative_slope)
        assert torch.equal(found.states, g.states[row])
        torch.testing.assert_close(found.distance(x), g.distance[row], **close)
        if row < 3:
            torch.testing.assert_close((found.rows, found.bounds), (g.facet_rows[row], g.facet_offsets[row]), **close)


@cases
def test_the_form_is_the_jacobian_and_gives_the_output(golden, case):
    g = golden("openbox", case)
    for x in g.x:
        weights, offsets = linear_form(*layers(g), x, negative_slope=g.negative_slope)
        jacobian = torch.func.jacrev(lambda u: forward(*layers(g), u, g.negative_slope))(x)
        torch.testing.assert_close(weights, jacobian, atol=1e-12, rtol=0)
        torch.testing.assert_close(weights @ x + offsets, forward(*layers(g), x, g.negative_slope), atol=1e-12, rtol=0)


@cases
def test_points_of_the_region_share_the_form_and_a_step_across_a_facet_changes_that_unit_alone(golden, case):
    g = golden("openbox", case)
    generator = torch.Generator().manual_seed(case)
    weights, biases = layers(g)
    for x in g.x:
        found = region(weights, biases, x, negative_slope=g.negative_slope)
        ways = normalize(torch.randn(20, len(x), generator=generator, dtype=x.dtype), dim=1)
        for u in x + ways * 0.99 * found.distance(x):
            assert (found.rows @ u <= found.bounds).all()
            expected = forward(weights, biases, u, g.negative_slope)
            torch.testing.assert_close(found.weights @ u + found.offsets, expected, atol=1e-12, rtol=0)
        gaps = (found.bounds - found.rows @ x) / found.rows.norm(dim=1)
        nearest = int(gaps.nan_to_num(nan=float("inf")).argmin())
        beyond = x + found.rows[nearest] / found.rows[nearest].norm() * gaps[nearest] * (1 + 1e-9)
        first = region(weights, biases, beyond, negative_slope=g.negative_slope).states
        changed = (first != found.states).nonzero().flatten().tolist()
        assert changed == [nearest]


def test_a_unit_at_exactly_zero_counts_as_on():
    weights, biases = [torch.eye(2), torch.ones(1, 2)], [torch.zeros(2), torch.zeros(1)]
    assert region(weights, biases, torch.tensor([0.0, -1.0])).states.tolist() == [True, False]


def test_contributions_and_the_offset_sum_to_each_logit_and_to_their_differences():
    generator = torch.Generator().manual_seed(0)
    sizes = (6, 9, 4)
    weights = tuple(torch.randn(b, a, generator=generator).double() for a, b in pairwise(sizes))
    network = Network(weights, tuple(torch.randn(b, generator=generator).double() for b in sizes[1:]))
    x = torch.randn(6, generator=generator).double()
    found = OpenBox().explain(network, x)
    logits = network.logits(x[None])[0]
    torch.testing.assert_close(found["logits"], logits)
    torch.testing.assert_close(found["contributions"].sum(1) + found["offsets"], logits)
    contributions, offset = (found[name][2] - found[name][1] for name in ("contributions", "offsets"))
    torch.testing.assert_close(contributions.sum() + offset, logits[2] - logits[1])


def test_a_linear_head_is_its_own_form_everywhere():
    head = Head(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), 0.1)
    x = torch.ones(5)
    found = OpenBox().explain(head, x)
    torch.testing.assert_close(found["weights"], head.proxies.T / 0.1)
    torch.testing.assert_close(found["logits"], head.logits(x[None])[0])
    assert found["distance"] == float("inf")
    assert found["states"].shape == (0,)


def test_a_direction_is_told_in_words_with_the_share_that_they_leave_out():
    words = torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 1, 0]]).double()
    coefficients, left = in_words(torch.tensor([0.0, 3, 4]).double(), words)
    torch.testing.assert_close(words.T @ coefficients, torch.tensor([0.0, 3, 0]).double())
    assert float(left) == pytest.approx(0.8)
    assert float(in_words(words[1], words)[1]) == pytest.approx(0, abs=1e-12)
    assert float(in_words(torch.zeros(3).double(), words)[1]) == 0
