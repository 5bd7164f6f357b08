"""Labels made into numbers of classes and groups; what teaches nothing is refused."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from covervlm.server.clip.labels import Labels
from covervlm.server.core.errors import InvalidRequest

MOST_CLASSES = 10_000


@dataclass(frozen=True, eq=False)
class Numbered:
    """labels and groups: (n,) int64 numbers of `classes` and `group_names`."""

    classes: list[str]
    labels: Tensor
    group_names: list[str]
    groups: Tensor | None
    ids: list[str]


def numbered(given: Labels, *, classes: Sequence[str] | None, label_map: Mapping[str, str]) -> Numbered:
    """The labels as numbers. Without `classes`, they are the labels that occur, sorted.

    label_map: from labels to the classes that they belong to; these labels are the groups then, unless there are
    others. Raises InvalidRequest for labels of no class, ids that occur twice, fewer than two classes with examples,
    and where every class has a single example, so that none could be held out.
    """
    fine = [" ".join(label.split()) for label in given.labels]
    mapped = {" ".join(label.split()): " ".join(name.split()) for label, name in label_map.items()}
    coarse = [mapped.get(label, label) for label in fine]
    known = sorted(set(coarse)) if classes is None else [" ".join(name.split()) for name in classes]
    if mapped and classes is None:
        known = sorted(set(mapped.values()))
    if len(known) > MOST_CLASSES:
        raise _wrong(f"There are {len(known)} classes; {MOST_CLASSES} may be learned at once.", given.place(0, "label"))
    numbers = {name: number for number, name in enumerate(known)}
    for row, name in enumerate(coarse):
        if not name:
            raise _wrong("A label is empty; leave the example out, or give it its label.", given.place(row, "label"))
        if name not in numbers:
            where = "classes of 'label_map'" if mapped and classes is None else "classes"
            raise _wrong(f"The label '{fine[row][:80]}' is none of the {where}.", given.place(row, "label"))
    _check_ids(given)
    counts = Counter(coarse)
    if len(counts) < 2:
        message = f"All examples have the label '{coarse[0][:80]}'; give examples of two classes at least."
        raise _wrong(message, given.place(0, "label"))
    if max(counts.values()) < 2:
        message = "Every class has one example only, so none can be held out; give some class a second one."
        raise _wrong(message, given.place(0, "label"))
    groups = fine if given.groups is None and mapped else given.groups
    names = sorted(set(groups or ()))
    by_name = {name: number for number, name in enumerate(names)}
    return Numbered(
        list(classes or known),
        torch.tensor([numbers[name] for name in coarse]),
        names,
        None if groups is None else torch.tensor([by_name[name] for name in groups]),
        list(given.ids),
    )


def shares(prior: Mapping[str, float], classes: Sequence[str]) -> Tensor:
    """(K,) that sum to 1. Raises InvalidRequest unless every class, and nothing else, has its share."""
    if set(prior) != set(classes):
        odd = min(set(prior) - set(classes) or set(classes) - set(prior))
        what = "is no class" if odd in prior else "has no share"
        raise _wrong(f"'{odd[:80]}' {what}; give every class its share.", "prior")
    values = torch.tensor([prior[name] for name in classes], dtype=torch.float64)
    return values / values.sum()


def _check_ids(given: Labels) -> None:
    seen: set[str] = set()
    for row, name in enumerate(given.ids):
        if name in seen:
            raise _wrong(f"The id '{name[:80]}' is given twice; give every example its own.", given.place(row, "id"))
        seen.add(name)


def _wrong(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="invalid_value")
