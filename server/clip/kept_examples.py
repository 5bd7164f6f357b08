"""Examples that a classifier remembers because its owner asked for it: for an explanation to point at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.clip.tensors import BadTensors

MOST_KEPT = 5000
"""Examples of one classifier."""

_NAMES = frozenset({"examples", "example_labels", "example_ids", "example_ends"})


@dataclass(frozen=True, eq=False)
class KeptExamples:
    """features: (m, d) unit rows. labels: (m,) int64 numbers of classes.

    ids: by which their owner calls them, one after another as UTF-8, (bytes,) uint8. ends: (m,) int64, where each id
    ends. So a file is read without reading thousands of texts.
    """

    features: Tensor
    labels: Tensor
    ids: Tensor
    ends: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, ids: Sequence[str], *, seed: int) -> Self:
        """All of them; of too many, the same number of each class as far as there are so many."""
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        by_class = order[labels[order].argsort(stable=True)]
        counts = torch.bincount(labels)
        place = torch.arange(len(by_class)) - (counts.cumsum(0) - counts)[labels[by_class]]
        rows = by_class[place.argsort(stable=True)[:MOST_KEPT]].sort().values
        written = [ids[row].encode() for row in rows.tolist()]
        joined = (
            torch.frombuffer(bytearray(b"".join(written)), dtype=torch.uint8) if any(written) else labels[:0].byte()
        )
        return cls(features[rows], labels[rows], joined, torch.tensor(list(accumulate(map(len, written)))))

    def id(self, row: int) -> str:
        begin = int(self.ends[row - 1]) if row else 0
        return self.ids[begin : int(self.ends[row])].numpy().tobytes().decode(errors="replace")

    def nearest(self, feature: Tensor, count: int) -> list[tuple[str, int, float]]:
        """(id, label, cosine) of those nearest to a unit feature (d,), the nearest first."""
        best = (self.features @ feature).topk(min(count, len(self)))
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(self.id(row), int(self.labels[row]), cosine) for row, cosine in found]

    def similarity(self, feature: Tensor, classes: int) -> list[float | None]:
        """Each class's cosine between a unit feature (d,) and the mean of its examples, None for a class of none."""
        sums = self.features.new_zeros(classes, self.features.shape[1]).index_add_(0, self.labels, self.features)
        counts = torch.bincount(self.labels, minlength=classes).tolist()
        cosines = (normalize(sums, dim=1) @ feature).tolist()
        return [cosine if count else None for cosine, count in zip(cosines, counts, strict=True)]

    def tensors(self) -> dict[str, Tensor]:
        """As a file holds them, features in half precision."""
        return {
            "examples": self.features.half(),
            "example_labels": self.labels,
            "example_ids": self.ids,
            "example_ends": self.ends,
        }


def take_examples(tensors: Mapping[str, Tensor], *, dimensions: int, classes: int) -> KeptExamples | None:
    """Those in a file, None where there are none. Raises BadTensors."""
    found = {name: tensors[name] for name in _NAMES & set(tensors)}
    if not found:
        return None
    if set(found) != _NAMES or not _fit(**found, dimensions=dimensions, classes=classes):
        raise BadTensors("The examples in the classifier's file are damaged.")
    features = normalize(found["examples"].float(), dim=1)
    return KeptExamples(features, found["example_labels"], found["example_ids"], found["example_ends"])


def without_examples(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in _NAMES}


def _fit(
    examples: Tensor,
    example_labels: Tensor,
    example_ids: Tensor,
    example_ends: Tensor,
    *,
    dimensions: int,
    classes: int,
) -> bool:
    count = len(examples) if examples.ndim == 2 else 0
    whole = (example_labels, example_ends)
    return (
        count > 0
        and examples.shape[1] == dimensions
        and examples.is_floating_point()
        and bool(examples.isfinite().all())
        and all(numbers.dtype == torch.int64 and numbers.shape == (count,) for numbers in whole)
        and example_ids.dtype == torch.uint8
        and example_ids.ndim == 1
        and int(example_labels.min()) >= 0
        and int(example_labels.max()) < classes
        and int(example_ends[0]) >= 0
        and bool((example_ends.diff() >= 0).all())
        and int(example_ends[-1]) == len(example_ids)
    )
