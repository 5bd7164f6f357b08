"""What a space for search is worth: how classes are found in it that it has not learned from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from covervlm.server.clip.choice import run_of, some
from covervlm.server.clip.holdout import MANY, Share
from covervlm.server.clip.methods.contracts import Examples, Fit, Progress, Projection, silent
from covervlm.server.clip.methods.kmeans import kmeans
from covervlm.server.clip.report import gain_told, share_told

NEIGHBOURS = (1, 2, 4, 8)
"""How many neighbours recall looks at."""

FEWEST_CLASSES = 4
"""Of two examples each, or nothing is judged: two to learn from and two to tell apart."""

_MOST_ROWS = 10_000
"""Examples of a half that are judged; of more, so many are drawn."""
_BLOCK = 1024


def halves(labels: Tensor, *, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows to learn from and rows to judge by, of other classes: both ways round of few examples, one of many.

    Classes of one example, which has nothing to be found by, are learned from both times. Nothing comes where fewer
    than four classes are left. labels: (n,) int64.
    """
    counts = torch.bincount(labels)
    classes = (counts > 1).nonzero().squeeze(1)
    if len(classes) < FEWEST_CLASSES:
        return
    generator = torch.Generator().manual_seed(seed)
    dealt = classes[torch.randperm(len(classes), generator=generator)]
    for half in dealt.tensor_split(2)[: 2 if len(labels) < MANY else 1]:
        unseen = torch.isin(labels, half)
        judge = unseen.nonzero().squeeze(1)
        drawn = torch.randperm(len(judge), generator=generator)[:_MOST_ROWS]
        yield (~unseen).nonzero().squeeze(1), judge[drawn.sort().values]


def nearest_alike(features: Tensor, labels: Tensor, counts: Sequence[int] = NEIGHBOURS) -> Tensor:
    """(n, len(counts)) bool: whether one of each row's nearest other rows, of so many, has its label.

    features: (n, d) unit rows, n >= 2. labels: (n,).
    """
    parts = []
    for rows in torch.arange(len(features)).split(_BLOCK):
        cosines = features[rows] @ features.T
        cosines[torch.arange(len(rows)), rows] = -torch.inf
        near = cosines.topk(min(max(counts), len(features) - 1), dim=1).indices
        alike = labels[near] == labels[rows, None]
        parts.append(torch.stack([alike[:, :count].any(dim=1) for count in counts], dim=1))
    return torch.cat(parts)


def mutual_information(first: Tensor, second: Tensor) -> float:
    """NMI of two labellings (n,), in [0, 1]: mutual information over the mean of both entropies."""
    pairs = torch.stack([first.unique(return_inverse=True)[1], second.unique(return_inverse=True)[1]])
    joint = _entropy(pairs[0] * (int(pairs[1].max()) + 1) + pairs[1])
    one, other = _entropy(pairs[0]), _entropy(pairs[1])
    return 2 * (one + other - joint) / (one + other) if one + other > 0 else 1.0


def _entropy(labels: Tensor) -> float:
    shares = torch.bincount(labels).double() / len(labels)
    return -float(shares.xlogy(shares).sum())


@dataclass(frozen=True, eq=False)
class Found:
    """hits: (m, 4) bool, as `nearest_alike` has them. nmi: of k-means, a mean over the halves. dimensions: its d."""

    hits: Tensor
    nmi: float
    dimensions: int

    @classmethod
    def of(cls, halves: Sequence[tuple[Tensor, Tensor]], seed: int, tick: Callable[[], object]) -> "Found":
        """halves: unit rows and their labels, of each half. tick: called often; what it raises ends the work."""
        hits = torch.cat([nearest_alike(rows, labels) for rows, labels in halves])
        values = [
            mutual_information(kmeans(rows, len(labels.unique()), seed=seed, restarts=3, tick=tick), labels)
            for rows, labels in halves
        ]
        return cls(hits, sum(values) / len(values), halves[0][0].shape[1])

    def told(self) -> dict[str, Any]:
        recall = {
            str(count): share_told(Share(int(column.sum()), len(column)))
            for count, column in zip(NEIGHBOURS, self.hits.T, strict=True)
        }
        return {"dimensions": self.dimensions, "recall": recall, "nmi": round(self.nmi, 4)}


def judged(
    learner: Fit[Projection],
    examples: Examples,
    images: Tensor,
    labels: Tensor | None,
    *,
    seed: int,
    progress: Progress = silent,
) -> tuple[Projection, dict[str, Any]]:
    """What was learned from all examples, and the report on it as JSON.

    images: (n, d) unit rows by which it is judged. labels: (n,) what is to be found together, perhaps finer than what
    the examples' labels say. Raises Diverged.
    """
    parts = [] if labels is None else list(halves(labels.cpu(), seed=seed))
    runs = len(parts) + 1
    plain, projected = [], []
    for number, (learn, judge) in enumerate(parts):
        learned = learner.fit(
            some(examples, learn.to(images.device)), seed=seed, progress=run_of(progress, number, runs)
        )
        assert labels is not None
        rows = images[judge.to(images.device)]
        plain.append((rows.cpu(), labels.cpu()[judge]))
        projected.append((learned.embed(rows).cpu(), labels.cpu()[judge]))
    whole = learner.fit(examples, seed=seed, progress=run_of(progress, len(parts), runs))
    told: dict[str, Any] = {"held_out": sum(len(rows) for rows, _ in plain), "seed": seed, "warnings": []}
    if not parts:
        told["warnings"].append(
            f"Nothing was judged: that takes {FEWEST_CLASSES} labels of two examples each, half of which are held out."
        )
        return whole, told

    def tick() -> None:
        progress(1.0)

    before, after = Found.of(plain, seed, tick), Found.of(projected, seed, tick)
    told |= {"unseen_labels": sum(len(part.unique()) for _, part in plain), **after.told()}
    return whole, told | {"unprojected": before.told(), "gain": gain_told(after.hits[:, 0], before.hits[:, 0])}
