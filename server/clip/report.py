"""What a classifier's owner is told of its worth, measured on examples that it has not learned from."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from covervlm.server.clip.choice import Choice, Judged, expected_accuracy
from covervlm.server.clip.holdout import FOLDS, MANY, Share, gain
from covervlm.server.clip.numbered_labels import Numbered

_LISTED = 100
"""Confusions and mistakes that are told of, the most frequent and the surest ones."""

_ALIKE = 2**12
"""Unit features that agree to so many parts are of the same picture."""

_THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


def report(choice: Choice, taught: Numbered, features: Tensor, *, prior: Tensor | None, seed: int) -> dict[str, Any]:
    """JSON. Figures of the best candidate, and beside it of all that were judged on the same held-out examples.

    features: (n, d) of all examples.
    """
    best, labels, rows = choice.best, taught.labels[choice.rows.cpu()], choice.rows.cpu()
    right = best.answers.cpu() == labels
    counts = torch.bincount(taught.labels, minlength=len(taught.classes)).tolist()
    told: dict[str, Any] = {
        "held_out": len(rows),
        "folds": FOLDS if len(taught.labels) < MANY else 1,
        "seed": seed,
        **_figures(best, taught, prior),
        "classes": [
            {"name": name, "examples": count, **share_told(share)}
            for name, count, share in zip(taught.classes, counts, best.score.classes, strict=True)
        ],
        "groups": [{"name": taught.group_names[g], **share_told(share)} for g, share in best.score.groups.items()],
        "confusions": [
            {"label": taught.classes[label], "answered": taught.classes[answered], "count": count}
            for label, answered, count in best.score.confusions[:_LISTED]
        ],
        "mistakes": _mistakes(best, right, labels, rows, taught),
        "abstaining": [_abstaining(best.confidences.cpu(), right, below) for below in _THRESHOLDS],
        "compared": [
            {
                "method": one.candidate.method,
                "parameters": dict(one.candidate.parameters),
                **_figures(one, taught, prior),
                "gain": gain_told(right, one.answers.cpu() == labels),
            }
            for one in choice.judged
        ],
    }
    return told | {"warnings": [*_warnings(counts, taught), *_on_equal(features.cpu(), taught.labels)]}


def _figures(one: Judged, taught: Numbered, prior: Tensor | None) -> dict[str, Any]:
    found = one.score
    by_name = [(taught.group_names[g], share) for g, share in found.groups.items()]
    by_name = by_name or list(zip(taught.classes, found.classes, strict=True))
    name, worst = min(((name, share) for name, share in by_name if share.count), key=lambda part: part[1].value)
    figures = {
        "accuracy": share_told(found.accuracy),
        "class_mean": round(found.class_mean, 4),
        "worst_group": {"name": name, **share_told(worst)},
    }
    return figures if prior is None else figures | {"expected_accuracy": round(expected_accuracy(found, prior), 4)}


def share_told(share: Share) -> dict[str, Any]:
    """As JSON, with its interval."""
    low, high = share.interval
    value = None if math.isnan(share.value) else round(share.value, 4)
    return {"value": value, "interval": [round(low, 4), round(high, 4)], "held_out": share.count}


def gain_told(better: Tensor, worse: Tensor) -> dict[str, Any]:
    """How much more often one is right than the other, as JSON. better, worse: (m,) bool."""
    difference, (low, high) = gain(better, worse)
    return {"value": round(difference, 4), "interval": [round(low, 4), round(high, 4)]}


def _mistakes(best: Judged, right: Tensor, labels: Tensor, rows: Tensor, taught: Numbered) -> list[dict[str, Any]]:
    """The surest first: some of them are labels that are wrong."""
    confidences, answers = best.confidences.cpu(), best.answers.cpu()
    wrong = (~right).nonzero().squeeze(1)
    order = wrong[confidences[wrong].argsort(descending=True, stable=True)][:_LISTED].tolist()
    return [
        {
            "id": taught.ids[int(rows[i])],
            "label": taught.classes[int(labels[i])],
            "answered": taught.classes[int(answers[i])],
            "confidence": round(float(confidences[i]), 4),
        }
        for i in order
    ]


def _abstaining(confidences: Tensor, right: Tensor, below: float) -> dict[str, Any]:
    """What is left where answers of less confidence are not given."""
    kept = right[confidences >= below]
    answered = {"answered": round(len(kept) / len(right), 4)}
    return {"abstain_below": below, **answered, "accuracy": share_told(Share(int(kept.sum()), len(kept)))}


def _warnings(counts: Sequence[int], taught: Numbered) -> list[str]:
    rules = [
        ({0}, "have no example: they are known by their names alone, and not at all to methods that read no names"),
        ({1}, "have one example, which is never held out: nothing is known of how they are labelled"),
    ]
    told = []
    for some, what in rules:
        names = [name for name, count in zip(taught.classes, counts, strict=True) if count in some]
        if names:
            told.append(f"{len(names)} classes {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}.")
    if taught.groups is not None:
        alone = int((torch.bincount(taught.groups) == 1).sum())
        if alone:
            told.append(f"{alone} groups have one example: their figures are no more than right or wrong once.")
    return told


def _on_equal(features: Tensor, labels: Tensor) -> Iterator[str]:
    """Remarks on examples that are there more than once, but for rounding."""
    first: dict[int, int] = {}
    torn = 0
    for row, label in zip(features.numpy(), labels.tolist(), strict=True):
        known = first.setdefault(hash((row * _ALIKE).round().astype("int32").tobytes()), label)
        torn += known != label
    if copies := len(features) - len(first):
        yield f"{copies} examples equal another: held out beside it, they make the figures better than they are."
    if torn:
        yield f"{torn} of these have another label than their equal, and one of the two is wrong."
