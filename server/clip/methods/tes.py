"""TeS: a class head whose labels are softened by what the classes' text says of each example."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from covervlm.server.clip.methods.contracts import Examples, Fit, Head, Progress
from covervlm.server.clip.methods.epochs import Descent, batches, shuffled
from covervlm.server.clip.methods.margin import mapped_head

_LOGIT_SCALE = 20.0
"""Scale of the class head's logits, whose inputs are unit vectors: they learn faster by its square."""


@dataclass(frozen=True)
class TeS(Fit[Head]):
    """A class head with labels softened by a text head, and the text head itself (arXiv 2304.01489).

    The text head is a (d, d) map from the identity, followed by the classes' text. `output` says which of the two is
    kept: "classes" is the paper's, "text" does better with few labels. `lambda_v` is how much labels are softened,
    which affects only "classes"; the paper has 0.1 to 0.2, where the features are trained too.
    """

    needs: ClassVar[tuple[str, ...]] = ("text", "labels")
    tuned: ClassVar[Mapping[str, tuple[str, ...]]] = {"output": ("text", "classes")}

    output: Literal["classes", "text"] = "text"
    tau: Annotated[float, Ge(1e-3), Le(10)] = 0.03
    lambda_v: Annotated[float, Ge(0), Le(1)] = 0.8
    lambda_t: Annotated[float, Ge(0), Le(100)] = 0.4
    learning_rate: Annotated[float, Gt(0), Le(100)] = 0.1
    momentum: Annotated[float, Gt(0), Le(0.999)] = 0.9
    weight_decay: Annotated[float, Ge(0), Le(1)] = 1e-5
    batch_size: Annotated[int, Ge(1), Le(65_536)] = 256
    epochs: Annotated[int, Ge(1), Le(10_000)] = 100

    def learn(self, examples: Examples, *, seed: int, progress: Progress) -> Head:
        x, y, text = examples.features, examples.labels, examples.text
        assert y is not None
        assert text is not None
        classes = torch.zeros_like(text, requires_grad=True)
        matrix = torch.eye(len(text), dtype=x.dtype, device=x.device, requires_grad=True)
        optimizer = torch.optim.SGD(
            [classes, matrix],
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=True,
        )
        descent = Descent(optimizer, batches(len(x), self.batch_size, self.epochs))
        for order in shuffled(x, self.epochs, seed=seed, progress=progress):
            for rows in order.split(self.batch_size):
                projection = normalize(x[rows] @ matrix.T, dim=1)
                logits = x[rows] @ classes * _LOGIT_SCALE
                value = loss(
                    logits, projection, text.T, y[rows], tau=self.tau, lambda_v=self.lambda_v, lambda_t=self.lambda_t
                )
                descent.step(value)
        if self.output == "classes":
            return Head(classes.detach(), 1 / _LOGIT_SCALE)
        return mapped_head(matrix.detach(), text, x, self.tau)


def soft_labels(projection: Tensor, text: Tensor, y: Tensor, *, tau: float, lambda_v: float) -> Tensor:
    """(B, K): of each label the share lambda_v goes where the text classifier sees the example; a constant."""
    seen = torch.softmax(projection.detach() @ text.T / tau, dim=1)
    return seen.mul_(lambda_v).scatter_add_(1, y[:, None], seen.new_full((len(y), 1), 1 - lambda_v))


def loss(
    logits: Tensor, projection: Tensor, text: Tensor, y: Tensor, *, tau: float, lambda_v: float, lambda_t: float
) -> Tensor:
    """Scalar: CE of the class logits (B, K) with soft labels, plus lambda_t times that of the text classifier.

    projection: (B, d) unit rows in the text's space. text: (K, d) unit rows. y: (B,) int64. TeS (arXiv 2304.01489).
    """
    soft = soft_labels(projection, text, y, tau=tau, lambda_v=lambda_v)
    return cross_entropy(logits, soft) + lambda_t * cross_entropy(projection @ text.T / tau, y)
