"""The best of several ways to learn a classifier: each is judged by examples that it has not learned from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from covervlm.server.clip.holdout import Score, held_out, score
from covervlm.server.clip.methods.contracts import (
    Diverged,
    Examples,
    Fit,
    Head,
    Method,
    Network,
    Progress,
    silent,
)
from covervlm.server.clip.methods.registry import method_class

ZERO_SHOT = "zero_shot"
"""What the classes' text says without any learning, in the place of a method's name."""

_CALIBRATED = 4000
"""Held-out examples that the confidence is fitted to."""


@dataclass(frozen=True)
class Auto(Method):
    """The best of zero-shot, `linear`, `sea`, `margin` and `tes` on held-out examples, by class mean."""


@dataclass(frozen=True)
class Candidate:
    """A method by name with its parameters; `zero_shot` learns nothing."""

    method: str
    parameters: Mapping[str, Any]

    def learner(self) -> Fit[Head | Network] | None:
        return None if self.method == ZERO_SHOT else method_class("train", self.method)(**self.parameters)


AUTO = (
    Candidate(ZERO_SHOT, {}),
    Candidate("linear", {}),
    Candidate("sea", {"eta": 0.2}),
    Candidate("sea", {"eta": 0.5}),
    Candidate("sea", {"eta": 0.8}),
    Candidate("margin", {}),
    Candidate("tes", {}),
)
"""What "auto" chooses among, the simplest first, which wins where others are no better."""

BASELINES = AUTO[:2]
"""What every other choice is compared with."""


def candidates(method: str, given: Mapping[str, Any]) -> tuple[Candidate, ...]:
    """What is tried for a method: every value worth trying of those parameters that are not given."""
    if method == "auto":
        return AUTO
    tuned = {name: values for name, values in method_class("train", method).tuned.items() if name not in given}
    return tuple(
        Candidate(method, {**given, **dict(zip(tuned, values, strict=True))}) for values in product(*tuned.values())
    )


@dataclass(frozen=True, eq=False)
class Judged:
    """A candidate and what it made of the held-out examples: answers and confidences, (m,) each.

    temperature: by which its logits have to be divided, so that it is as often right as it is confident. offsets: (K,)
    or None, what the prior adds to them then.
    """

    candidate: Candidate
    answers: Tensor
    confidences: Tensor
    temperature: float
    offsets: Tensor | None
    score: Score


@dataclass(frozen=True, eq=False)
class Choice:
    """The best candidate, learned from all examples, and how all of them did on those held out.

    rows: (m,) of the examples that were held out. The first of `judged` were to be chosen among, the others are what
    they are compared with.
    """

    head: Head | Network
    best: Judged
    judged: list[Judged]
    rows: Tensor


def choose(
    examples: Examples,
    among: tuple[Candidate, ...] = AUTO,
    *,
    beside: tuple[Candidate, ...] = (),
    prior: Tensor | None = None,
    temperature: float = 0.01,
    seed: int = 0,
    progress: Progress = silent,
) -> Choice:
    """The candidate whose class mean on held-out examples is highest, the first of equals.

    Those that need what is not there, or that diverge, are left out. beside: what is judged as well, but not chosen.
    prior: (K,) shares of the classes where it will be used; then the mean is by them. temperature: that of the text
    without learning. ValueError where nothing can be held out or no candidate is left; Diverged where all do.
    """
    labels = examples.labels
    if labels is None:
        raise ValueError("labels are needed to hold examples out")
    able = [candidate for candidate in among if _can(candidate, examples)]
    if not able:
        raise ValueError("no method can learn from these examples alone")
    others = [candidate for candidate in beside if candidate not in able and _can(candidate, examples)]
    parts = list(held_out(labels.cpu(), seed=seed))
    rows = torch.cat([judge for _, judge in parts]).to(labels.device)
    runs, done = (len(able) + len(others)) * len(parts) + 1, 0
    judged: list[Judged] = []
    for candidate in (*able, *others):
        logits = []
        try:
            for number, (learn, judge) in enumerate(parts):
                told = run_of(progress, done + number, runs)
                head = _learn(candidate, some(examples, learn), temperature, seed, told)
                logits.append(head.logits(examples.features[judge]))
            judged.append(_judge(candidate, torch.cat(logits), rows, examples, prior))
        except Diverged:
            pass
        done += len(parts)
    chosen = [one for one in judged if one.candidate in able]
    if not chosen:
        raise Diverged
    best = max(chosen, key=lambda one: _worth(one.score, prior))
    head = _learn(best.candidate, examples, temperature, seed, run_of(progress, done, runs))
    return Choice(head, best, judged, rows)


def _judge(candidate: Candidate, logits: Tensor, rows: Tensor, examples: Examples, prior: Tensor | None) -> Judged:
    assert examples.labels is not None
    labels = examples.labels[rows]
    temperature = calibrated(logits[:_CALIBRATED], labels[:_CALIBRATED])
    offsets = None if prior is None else (prior / _learned_prior(candidate, examples)).log().to(logits)
    logits = logits / temperature
    if offsets is not None:
        logits += offsets
    confidences, answers = torch.softmax(logits, dim=1).max(dim=1)
    groups = None if examples.groups is None else examples.groups[rows]
    found = score(answers, labels, groups, classes=examples.classes)
    return Judged(candidate, answers, confidences, temperature, offsets, found)


def calibrated(logits: Tensor, labels: Tensor) -> float:
    """The temperature, of 61 from 1/20 to 20, under which held-out labels are likeliest. logits: (m, K).

    As if one label of m + 2 were anything, so that a few right answers make nobody sure (Platt's targets).
    """
    grid = torch.logspace(-1, 1, 61, base=20, dtype=torch.float64).tolist()
    doubt = 1 / (len(labels) + 2)
    return min(grid, key=lambda t: (float(cross_entropy(logits / t, labels, label_smoothing=doubt)), abs(t - 1)))


def _learned_prior(candidate: Candidate, examples: Examples) -> Tensor:
    """(K,) the classes' shares that a head expects: those it has seen, unless it weighs classes alike."""
    learner = candidate.learner()
    if learner is None or learner.balanced:
        return torch.full((examples.classes,), 1 / examples.classes)
    assert examples.labels is not None
    counts = torch.bincount(examples.labels, minlength=examples.classes).cpu() + 1.0
    return counts / counts.sum()


def _worth(found: Score, prior: Tensor | None) -> float:
    return found.class_mean if prior is None else expected_accuracy(found, prior)


def expected_accuracy(found: Score, prior: Tensor) -> float:
    """Accuracy where classes come with these shares (K,); classes of which no example was held out do not count."""
    known = [(share.value, float(p)) for share, p in zip(found.classes, prior, strict=True) if share.count]
    return sum(value * p for value, p in known) / sum(p for _, p in known)


def _can(candidate: Candidate, examples: Examples) -> bool:
    learner = candidate.learner()
    needs = ("text",) if learner is None else learner.needs
    return all(getattr(examples, name) is not None for name in needs)


def _learn(
    candidate: Candidate, examples: Examples, temperature: float, seed: int, progress: Progress
) -> Head | Network:
    learner = candidate.learner()
    if learner is not None:
        return learner.fit(examples, seed=seed, progress=progress)
    assert examples.text is not None
    progress(1.0)
    return Head(examples.text, temperature)


def some(examples: Examples, rows: Tensor) -> Examples:
    """Those examples alone whose numbers `rows` (m,) has."""
    names = ("features", "labels", "groups", "second_views")
    return replace(examples, **{n: value[rows] for n in names if (value := getattr(examples, n)) is not None})


def run_of(progress: Progress, done: int, runs: int) -> Progress:
    """The progress of one run of several."""

    def report(share: float, /, **figures: float) -> None:
        progress((done + share) / runs, **figures)

    return report
