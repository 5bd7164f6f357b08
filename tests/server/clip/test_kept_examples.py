"""Kept examples: few of each class rather than many of one, and nothing but examples is read from a file."""

from collections import Counter

import pytest
import torch
from torch.nn.functional import normalize

from covervlm.server.clip import kept_examples
from covervlm.server.clip.kept_examples import KeptExamples, take_examples, without_examples
from covervlm.server.clip.tensors import BadTensors

IDS = ["", "two words", "é", "", "long" * 300, "last"]


def kept(labels=(0, 1, 0, 1, 2, 2)) -> KeptExamples:
    features = normalize(torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(0)), dim=1)
    ids = [IDS[i % len(IDS)] for i in range(len(labels))]
    return KeptExamples.of(features, torch.tensor(labels), ids, seed=0)


def test_all_come_back_from_a_file_with_their_ids():
    before = kept()
    after = take_examples({"proxies": torch.ones(5, 3), **before.tensors()}, dimensions=5, classes=3)
    assert [after.id(row) for row in range(6)] == IDS
    assert after.labels.tolist() == [0, 1, 0, 1, 2, 2]
    torch.testing.assert_close(after.features, before.features, atol=1e-3, rtol=0)
    assert take_examples({"proxies": torch.ones(5, 3)}, dimensions=5, classes=3) is None
    assert set(without_examples({"proxies": torch.ones(1), **before.tensors()})) == {"proxies"}


def test_of_too_many_rare_classes_keep_theirs(monkeypatch):
    monkeypatch.setattr(kept_examples, "MOST_KEPT", 10)
    some = kept([0] * 50 + [1] * 2 + [2] * 20)
    assert Counter(some.labels.tolist()) == {0: 4, 1: 2, 2: 4}


def test_a_class_without_examples_has_no_similarity():
    some = kept()
    assert some.similarity(some.features[0], 4)[3] is None


@pytest.mark.parametrize(
    "change",
    [
        {"examples": torch.ones(6, 4)},
        {"examples": torch.full((6, 5), torch.nan)},
        {"examples": torch.ones(6, 5, dtype=torch.int64)},
        {"examples": torch.ones(0, 5), "example_labels": torch.ones(0).long(), "example_ends": torch.ones(0).long()},
        {"example_labels": torch.tensor([0, 1, 0, 1, 2, 3])},
        {"example_labels": torch.tensor([0, 1, 0, 1, 2, -1])},
        {"example_labels": torch.zeros(5, dtype=torch.int64)},
        {"example_labels": torch.zeros(6)},
        {"example_ends": torch.tensor([0, 9, 8, 9, 10, 11])},
        {"example_ends": torch.tensor([-1, 0, 0, 0, 0, 0])},
        {"example_ids": torch.zeros(3, dtype=torch.uint8)},
        {"example_ids": torch.zeros(3)},
    ],
)
def test_what_is_no_set_of_examples_is_refused(change):
    with pytest.raises(BadTensors, match="damaged"):
        take_examples({**kept().tensors(), **change}, dimensions=5, classes=3)
    with pytest.raises(BadTensors, match="damaged"):
        take_examples({"examples": torch.ones(6, 5)}, dimensions=5, classes=3)
