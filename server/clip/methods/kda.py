"""KDA: fewer dimensions that keep the similarities, which are compared at a few landmarks instead of all pairs."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn.functional import huber_loss, normalize

from covervlm.server.clip.methods.contracts import Examples, Fit, Progress, Projection
from covervlm.server.clip.methods.epochs import Descent, batches, shuffled
from covervlm.server.clip.methods.kmeans import kmeans
from covervlm.server.clip.methods.soft_triple import principal_directions


@dataclass(frozen=True)
class KDA(Fit[Projection]):
    """Fewer dimensions that keep the features' cosines with some landmarks (arXiv 2009.14416).

    It starts from the principal directions, which are nearly as good. The landmarks are means of k-means: no labels.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    dimensions: Annotated[int, Ge(1), Le(65_536)] = 64
    landmarks: Annotated[int, Ge(1), Le(10_000)] = 256
    learning_rate: Annotated[float, Gt(0), Le(10)] = 1e-2
    batch_size: Annotated[int, Ge(1), Le(65_536)] = 256
    epochs: Annotated[int, Ge(1), Le(10_000)] = 30

    def learn(self, examples: Examples, *, seed: int, progress: Progress) -> Projection:
        x = examples.features
        matrix = principal_directions(x, min(self.dimensions, x.shape[1])).requires_grad_()
        landmarks = _landmarks(x, min(self.landmarks, len(x)), seed)
        adam = torch.optim.Adam([matrix], lr=self.learning_rate)
        descent = Descent(adam, batches(len(x), self.batch_size, self.epochs))
        for order in shuffled(x, self.epochs, seed=seed, progress=progress):
            seen = normalize(landmarks @ matrix.detach().T, dim=1)
            for rows in order.split(self.batch_size):
                descent.step(loss(normalize(x[rows] @ matrix.T, dim=1), x[rows], seen, landmarks))
        return Projection(matrix.detach())


def loss(student: Tensor, teacher: Tensor, student_centers: Tensor, teacher_centers: Tensor) -> Tensor:
    """Scalar: how far the student's similarities to its landmarks are from the teacher's, by Huber's loss.

    student: (B, d_s) and teacher: (B, d_t) of the same images. Their landmarks, (C, d_s) and (C, d_t), are constants.
    The sum is divided by the Frobenius norm of the teacher's similarities. KDA (arXiv 2009.14416).
    """
    wanted = teacher.detach() @ teacher_centers.detach().T
    return huber_loss(student @ student_centers.detach().T, wanted, reduction="sum") / wanted.norm()


def nystrom(x: Tensor, landmarks: Tensor) -> Tensor:
    """(n, n): x x' approximated from similarities to landmarks (C, d), exact where they span x (n, d)."""
    near = x @ landmarks.T
    return near @ torch.linalg.pinv(landmarks @ landmarks.T, hermitian=True) @ near.T


def _landmarks(x: Tensor, count: int, seed: int) -> Tensor:
    """(count, d) unit means of k-means."""
    labels = kmeans(x, count, seed=seed, restarts=1, iterations=20)
    sums = x.new_zeros(count, x.shape[1]).index_add_(0, labels, x)
    return normalize(sums, dim=1)
