"""CoKe: k-means over images that come once, with groups kept from emptying, as a stream and as a clustering."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import normalize

from covervlm.server.clip.methods.contracts import (
    Group,
    Groups,
    Moved,
    Pictures,
    Placed,
    Progress,
    Stream,
    check_text,
    silent,
)
from covervlm.server.clip.methods.epochs import shuffled
from covervlm.server.clip.methods.kmeans import choose_clusters, kmeans

_BATCH = 64
"""How many images one dual step is meant for; a smaller batch takes a proportionally smaller step."""


class OnlineKMeans:
    """Unit centres that follow the images assigned to them; duals raise groups that get less than their share.

    centers: (d, K) unit columns to start from. n: how many images an epoch has. ratio: every group shall hold at least
    ratio * n / K of them. dual_step: how fast duals move, 0 for no constraint. online_epochs: after so many epochs
    centres hold still while images are assigned, and epochs are averaged. CoKe (arXiv 2105.11527).
    """

    def __init__(
        self, centers: Tensor, *, n: int, ratio: float, dual_step: float, online_epochs: int | None = None
    ) -> None:
        self.dual_step = dual_step
        self.duals = centers.new_zeros(centers.shape[1])
        self.counts = torch.zeros_like(self.duals)
        self.lower_bound = math.floor(ratio * n / centers.shape[1])
        self._ratio = ratio
        self._online_epochs = online_epochs
        self._epoch = 0
        # By rows, since few of them change at a time. Images are assigned to `_still`; online the two are the same.
        self._moving = self._still = centers.T.clone(memory_format=torch.contiguous_format)

    @property
    def centers(self) -> Tensor:
        """(d, K) as if the epoch ended now."""
        averaged = self._epoch - (self._epoch if self._online_epochs is None else self._online_epochs)
        if averaged <= 0:
            return self._still.T
        now = normalize(self._moving, dim=1)
        return normalize(self._still.mul(1 - 1 / averaged).add_(now, alpha=1 / averaged), dim=1).T

    def begin_epoch(self) -> None:
        """Counts start again, so the first images that a group gets replace its centre; duals stay."""
        self._still = self.centers.T
        self._epoch += 1
        online = self._online_epochs is None or self._epoch <= self._online_epochs
        self._moving = self._still if online else self._still.clone()
        self.counts.zero_()

    def assign(self, batch: Tensor) -> Tensor:
        """(B,) int64: each image's group by the centres and duals of before; then both move. batch: (B, d)."""
        labels = self.scores(batch).argmax(dim=1)
        self.follow(batch, labels)
        return labels

    def scores(self, batch: Tensor) -> Tensor:
        """(B, K): an image belongs to the group of its highest."""
        return (batch @ self._still.T).add_(self.duals)  # sooner there than with the duals as a bias

    def follow(self, batch: Tensor, labels: Tensor) -> None:
        """Centres and duals move by images (B, d) of these groups (B,)."""
        touched, place, sizes = labels.unique(return_inverse=True, return_counts=True)
        new = sizes.to(batch.dtype)
        self.duals.index_add_(0, touched, new, alpha=-self.dual_step / len(batch))
        self.duals.add_(self.dual_step * self._ratio / len(self.duals))
        if self._ratio < 1:
            self.duals.clamp_min_(0)
        seen = self.counts.index_select(0, touched)
        moved = self._moving.index_select(0, touched).mul_(seen[:, None]).index_add_(0, place, batch)
        # A centre of unit length has the direction of its images' sum; only one that is averaged later needs the mean.
        length = vector_norm(moved, dim=1).clamp_min_(1e-12) if self._moving is self._still else seen + new
        self._moving.index_copy_(0, touched, moved.div_(length[:, None]))
        self.counts.index_add_(0, touched, new)

    def restore(self, centers: Tensor, duals: Tensor, counts: Tensor) -> None:
        """Go on, online, from centres (d, K), duals (K,) and counts (K,)."""
        self._moving = self._still = centers.T.clone(memory_format=torch.contiguous_format)
        self.duals, self.counts = duals.clone(), counts.clone()


@dataclass(frozen=True, eq=False)
class GroupAnswer:
    """One image's group, and a distribution over the groups (K,). index: its place in the stream, from 0."""

    index: int
    label: int
    combined: Tensor


@dataclass(frozen=True, eq=False)
class GroupState:
    """All that a stream leaves behind: centres (d, K), duals and counts (K,), and how many images were seen."""

    centers: Tensor
    duals: Tensor
    counts: Tensor
    observed: int


@dataclass(frozen=True)
class CoKe(Stream):
    """Groups each image at once, around centres that follow the stream; no group falls much below its share.

    Centres start from the text. `ratio` is the smallest group's size in that of an average one, `dual_step` how firmly
    it is held, for each group; 0 is k-means without constraint (arXiv 2105.11527).
    """

    state: ClassVar[type] = GroupState

    ratio: Annotated[float, Gt(0), Le(1)] = 0.4
    dual_step: Annotated[float, Ge(0), Le(10)] = 0.05
    temperature: Annotated[float, Ge(1e-3), Le(10)] = 0.1

    def open(self, text: Tensor, horizon: int) -> "GroupStream":
        return GroupStream(text, horizon, self)


class GroupStream:
    """One stream of groups. Past the horizon, groups forget: none weighs more images than the horizon has."""

    def __init__(self, centers: Tensor, horizon: int, method: CoKe) -> None:
        check_text(centers)
        if horizon < 1:
            raise ValueError("the horizon must be at least 1")
        self._dual_step = whole_step(method.dual_step, centers.shape[1])
        self._temperature = method.temperature
        self._horizon = horizon
        self._observed = 0
        self._start = centers
        self._groups = OnlineKMeans(centers, n=horizon, ratio=method.ratio, dual_step=self._dual_step)

    @property
    def observed(self) -> int:
        return self._observed

    def observe(self, feature: Tensor) -> GroupAnswer:
        """One image's group, from which the groups then learn. ValueError, and no update, for no feature (d,)."""
        return self.observe_all(feature[None])[0]

    def observe_all(self, features: Tensor) -> list[GroupAnswer]:
        """The groups of images (n, d) that came together, by 64: these get theirs before the groups learn from them."""
        self._check(features)
        answers = []
        for batch in features.split(_BATCH):
            first = self._observed
            labels, scores = self._learn(batch)
            shares = torch.softmax(scores.div_(self._temperature), dim=1, out=scores)
            rows = zip(labels.tolist(), shares, strict=True)
            answers += [GroupAnswer(first + i, label, combined) for i, (label, combined) in enumerate(rows)]
        return answers

    def observe_batch(self, features: Tensor) -> Tensor:
        """(B,) int64 groups of images (B, d) that came together; the groups learn from them once all have theirs."""
        self._check(features)
        return self._learn(features)[0]

    def _check(self, features: Tensor) -> None:
        d = self._groups.centers.shape[0]
        if features.ndim != 2 or features.shape[1] != d:
            raise ValueError(f"expected {d} dimensions, got {tuple(features.shape)}")
        if not math.isfinite(float(features.sum())):
            raise ValueError("the images' features hold values that are not finite")

    def _learn(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) groups and (B, K) scores by what was known before; then the groups learn."""
        scores = self._groups.scores(batch)
        labels = scores.argmax(dim=1)
        self._groups.dual_step = self._dual_step * len(batch) / _BATCH
        self._groups.follow(batch, labels)
        self._groups.counts.clamp_max_(self._horizon)
        self._observed += len(batch)
        return labels, scores

    def moved(self) -> Moved:
        return Moved.of(self._groups.centers, self._start, self._groups.counts)

    def snapshot(self) -> GroupState:
        groups = self._groups
        return GroupState(groups.centers.clone(), groups.duals.clone(), groups.counts.clone(), self._observed)

    def check(self, state: GroupState) -> None:
        shape = self._groups.centers.shape
        if state.centers.shape != shape or not state.duals.shape == state.counts.shape == shape[1:]:
            raise ValueError("the state belongs to other classes or dimensions")
        tensors = (state.centers, state.duals, state.counts)
        if (
            not all(bool(tensor.isfinite().all()) for tensor in tensors)
            or min(state.observed, float(state.counts.min())) < 0
        ):
            raise ValueError("the state is damaged")

    def restore(self, state: GroupState) -> None:
        self.check(state)
        self._groups.restore(state.centers, state.duals, state.counts)
        self._observed = state.observed


@dataclass(frozen=True)
class CoKeGroups(Group):
    """Groups by the images' own embeddings, none much smaller than `ratio` of an average one (arXiv 2105.11527).

    k-means finds where to start. `dual_step` is how firmly sizes are held, for each group.
    """

    seeded_by_words: ClassVar[bool] = False

    ratio: Annotated[float, Gt(0), Le(1)] = 0.4
    dual_step: Annotated[float, Ge(0), Le(10)] = 0.05
    epochs: Annotated[int, Ge(1), Le(1000)] = 10

    def place(self, pictures: Pictures, *, seed: int, progress: Progress) -> Placed:
        return Placed(pictures.images, pictures.nearest_words())

    def group(self, pictures: Pictures, count: int | None, *, seed: int = 0, progress: Progress = silent) -> Groups:
        placed = self.place(pictures, seed=seed, progress=progress)
        points = placed.points
        count = count or choose_clusters(points, seed=seed)
        labels = kmeans(points, count, seed=seed)
        sums = points.new_zeros(count, points.shape[1]).index_add_(0, labels, points)
        groups = OnlineKMeans(
            normalize(sums, dim=1).T, n=len(points), ratio=self.ratio, dual_step=whole_step(self.dual_step, count)
        )
        for order in shuffled(points, self.epochs, seed=seed, progress=progress):
            groups.begin_epoch()
            for rows in order.split(_BATCH):
                labels[rows] = groups.assign(points[rows])
        sizes = torch.bincount(labels, minlength=count)
        return Groups(points, placed.words, sizes.argsort(descending=True, stable=True).argsort()[labels])


def whole_step(each: float, groups: int) -> float:
    """The dual step for so many groups: the paper's 20 suits thousands, and would make few groups oscillate."""
    return min(20.0, each * groups)
