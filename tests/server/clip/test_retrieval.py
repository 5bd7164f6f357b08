"""Recall, NMI and the hold-out of whole classes, beside slow versions of their definitions."""

import math
from collections import Counter

import pytest
import torch
from torch.nn.functional import normalize

from covervlm.server.clip import retrieval
from covervlm.server.clip.methods.contracts import Examples, Projection
from covervlm.server.clip.methods.soft_triple import SoftTriple
from covervlm.server.clip.retrieval import halves, judged, mutual_information, nearest_alike


def rows(n: int, d: int = 6, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def slow_recall(features, labels, count) -> list[bool]:
    found = []
    for i, query in enumerate(features.tolist()):
        others = [
            (-sum(a * b for a, b in zip(query, row, strict=True)), j)
            for j, row in enumerate(features.tolist())
            if j != i
        ]
        found.append(any(labels[j] == labels[i] for _, j in sorted(others)[:count]))
    return found


def slow_nmi(first, second) -> float:
    n = len(first)
    ones, others, pairs = Counter(first), Counter(second), Counter(zip(first, second, strict=True))
    mutual = sum(c / n * math.log(c * n / (ones[a] * others[b])) for (a, b), c in pairs.items())
    entropies = [-sum(c / n * math.log(c / n) for c in counts.values()) for counts in (ones, others)]
    return mutual / (sum(entropies) / 2)


def test_recall_looks_at_the_nearest_others(monkeypatch):
    monkeypatch.setattr(retrieval, "_BLOCK", 7)
    features, labels = rows(40), torch.arange(40) % 9
    hits = nearest_alike(features, labels)
    for column, count in enumerate((1, 2, 4, 8)):
        assert hits[:, column].tolist() == slow_recall(features, labels.tolist(), count)


def test_fewer_others_than_neighbours_are_all_looked_at():
    assert nearest_alike(rows(3), torch.tensor([0, 1, 0])).tolist() == [
        [found, found or True, True, True] if label == 0 else [False] * 4
        for label, found in zip((0, 1, 0), slow_recall(rows(3), [0, 1, 0], 1), strict=True)
    ]


def test_nmi_is_shared_information_over_the_mean_entropy():
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randint(k, (50,), generator=generator) for k in (5, 7))
    assert mutual_information(first, second) == pytest.approx(slow_nmi(first.tolist(), second.tolist()))
    assert mutual_information(first, 100 - 3 * first) == pytest.approx(1)
    assert mutual_information(first, torch.zeros(50, dtype=torch.int64)) == pytest.approx(0, abs=1e-12)


def test_no_class_is_learned_from_and_judged_and_each_is_judged_once():
    labels = torch.tensor([*range(10)] * 3 + [99])
    parts = list(halves(labels, seed=3))
    assert len(parts) == 2
    for learn, judge in parts:
        assert not set(labels[learn].tolist()) & set(labels[judge].tolist())
        assert len(learn) + len(judge) == len(labels)
        assert 30 in learn.tolist()  # the only example of its class
    assert sorted(torch.cat([judge for _, judge in parts]).tolist()) == list(range(30))
    assert [p.tolist() for pair in halves(labels, seed=3) for p in pair] == [p.tolist() for pair in parts for p in pair]


def test_nothing_is_judged_of_three_classes():
    assert list(halves(torch.tensor([0, 0, 1, 1, 2, 2, 3]), seed=0)) == []
    features = rows(7)
    given = Examples(features, labels=torch.tensor([0, 0, 1, 1, 2, 2, 3]))
    _, told = judged(SoftTriple(epochs=1), given, features, given.labels, seed=0)
    assert (told["held_out"], len(told["warnings"])) == (0, 1)
    assert "recall" not in told


def test_many_examples_are_judged_on_one_half_and_at_most_so_many(monkeypatch):
    monkeypatch.setattr(retrieval, "MANY", 20)
    monkeypatch.setattr(retrieval, "_MOST_ROWS", 7)
    [(learn, judge)] = halves(torch.arange(8).repeat(5), seed=0)
    assert (len(learn), len(judge)) == (20, 7)


class Ideal:
    """A method that knows where the labels are: in the last dimensions. It remembers what it has seen."""

    def __init__(self):
        self.seen = []

    def fit(self, examples, *, seed, progress):
        self.seen.append(examples)
        progress(1.0)
        d = examples.features.shape[1]
        return Projection(torch.eye(d, dtype=torch.float64)[d // 2 :])


def test_the_report_compares_the_projection_with_the_features_on_unseen_labels():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 8
    noise = torch.randn(80, 8, generator=generator, dtype=torch.float64)
    signal = 0.3 * torch.eye(8, dtype=torch.float64)[labels]
    features = normalize(torch.cat([noise, signal], dim=1), dim=1)
    method, shares = Ideal(), []
    coarse = Examples(features, labels=labels % 2)
    learned, told = judged(
        method, coarse, features, labels, seed=0, progress=lambda share, /, **_: shares.append(share)
    )
    assert [len(seen.features) for seen in method.seen] == [40, 40, 80]
    assert learned.matrix.shape == (8, 16)
    assert (told["held_out"], told["unseen_labels"], told["dimensions"]) == (80, 8, 8)
    assert {count: one["value"] for count, one in told["recall"].items()} == dict.fromkeys("1248", 1.0)
    assert told["nmi"] == 1
    plain = [slow_recall(features[judge], labels[judge].tolist(), 1) for _, judge in halves(labels, seed=0)]
    share = sum(map(sum, plain)) / 80
    assert told["unprojected"]["recall"]["1"]["value"] == pytest.approx(share, abs=1e-4)
    assert told["unprojected"]["dimensions"] == 16
    assert told["gain"]["value"] == pytest.approx(1 - share, abs=1e-4)
    assert shares == sorted(shares)
    assert shares[-1] == 1
