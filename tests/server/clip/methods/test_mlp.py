"""The two-layer head: what it can learn that no hyperplane can, and what its file holds."""

import torch
from torch.nn.functional import normalize

from covervlm.server.clip.methods.contracts import Examples
from covervlm.server.clip.methods.linear import Linear
from covervlm.server.clip.methods.mlp import MLP


def test_it_divides_what_no_hyperplane_does():
    generator = torch.Generator().manual_seed(0)
    x = normalize(torch.randn(400, 3, generator=generator), dim=1)
    y = (x[:, 0] * x[:, 1] > 0).long()

    def accuracy(method):
        head = method.fit(Examples(x[:300], labels=y[:300]))
        return float((head.logits(x[300:]).argmax(1) == y[300:]).float().mean())

    assert accuracy(Linear()) < 0.7
    assert accuracy(MLP()) > 0.9


def test_it_has_two_layers_of_the_size_asked_for():
    head = MLP(hidden=5, epochs=2).fit(Examples(torch.eye(4, dtype=torch.float64), labels=torch.tensor([0, 1, 2, 2])))
    assert [tuple(weight.shape) for weight in head.weights] == [(5, 4), (3, 5)]
    assert not any(tensor.requires_grad for tensor in (*head.weights, *head.biases))
    expected = torch.relu(head.weights[0] @ torch.ones(4).double() + head.biases[0])
    torch.testing.assert_close(head.logits(torch.ones(1, 4).double())[0], head.weights[1] @ expected + head.biases[1])
