"""A small network as a head, for classes that no hyperplane divides."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch.nn.functional import cross_entropy

from covervlm.server.clip.methods.contracts import Examples, Fit, Network, Progress
from covervlm.server.clip.methods.epochs import Descent, batches, shuffled


@dataclass(frozen=True)
class MLP(Fit[Network]):
    """Two layers with ReLU between them, by AdamW with cosine decay; `openbox` explains its answers exactly."""

    needs: ClassVar[tuple[str, ...]] = ("labels",)

    hidden: Annotated[int, Ge(1), Le(8192)] = 256
    learning_rate: Annotated[float, Gt(0), Le(1)] = 0.003
    weight_decay: Annotated[float, Ge(0), Le(10)] = 0.01
    batch_size: Annotated[int, Ge(1), Le(65_536)] = 256
    epochs: Annotated[int, Ge(1), Le(10_000)] = 100

    def learn(self, examples: Examples, *, seed: int, progress: Progress) -> Network:
        x, y = examples.features, examples.labels
        assert y is not None
        # Rows of standard normals take unit features to numbers of about 1. The second layer starts at zero, so no
        # class begins ahead of another, however they are numbered.
        first = torch.randn(self.hidden, x.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        weights = [first.to(x), x.new_zeros(examples.classes, self.hidden)]
        biases = [x.new_zeros(len(weight)) for weight in weights]
        layers = [layer.requires_grad_() for layer in (*weights, *biases)]
        optimizer = torch.optim.AdamW(layers, lr=self.learning_rate, weight_decay=self.weight_decay)
        descent = Descent(optimizer, batches(len(x), self.batch_size, self.epochs))
        network = Network(tuple(weights), tuple(biases))
        for order in shuffled(x, self.epochs, seed=seed, progress=progress):
            for rows in order.split(self.batch_size):
                descent.step(cross_entropy(network.logits(x[rows]), y[rows]))
        return Network(tuple(w.detach() for w in weights), tuple(b.detach() for b in biases))
