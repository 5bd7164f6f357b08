"""Labels become numbers of classes; what teaches nothing is refused by its place in the request."""

import pytest
import torch

from covervlm.server.clip.labels import Labels
from covervlm.server.clip.numbered_labels import numbered, shares
from covervlm.server.core.errors import InvalidRequest


def labels(*names: str, groups=None, ids=None) -> Labels:
    ids = [str(i) for i in range(len(names))] if ids is None else ids
    return Labels(names, groups, ids, lambda row, field: f"examples[{row}].{field}")


def test_classes_are_the_labels_that_occur_or_those_that_are_given():
    found = numbered(labels("cat", " dog", "cat "), classes=None, label_map={})
    assert (found.classes, found.labels.tolist(), found.groups) == (["cat", "dog"], [0, 1, 0], None)
    found = numbered(labels("cat", "dog", "cat"), classes=["dog", "cow", "cat"], label_map={})
    assert found.labels.tolist() == [2, 0, 2]


def test_fine_labels_become_their_classes_and_are_the_groups():
    label_map = {"siamese": "cat", "persian": "cat", "beagle": "dog"}
    found = numbered(labels("siamese", "persian", "beagle", "cat"), classes=None, label_map=label_map)
    assert (found.classes, found.labels.tolist()) == (["cat", "dog"], [0, 0, 1, 0])
    assert [found.group_names[g] for g in found.groups] == ["siamese", "persian", "beagle", "cat"]
    own = numbered(labels("siamese", "persian", "beagle", groups=["a", "b", "b"]), classes=None, label_map=label_map)
    assert (own.group_names, own.groups.tolist()) == (["a", "b"], [0, 1, 1])


@pytest.mark.parametrize(
    ("given", "classes", "param", "message"),
    [
        (labels("cat", "cow", "cat"), ["cat", "dog"], "examples[1].label", "'cow' is none of the classes"),
        (labels("cat", " ", "cat"), None, "examples[1].label", "A label is empty"),
        (labels(*map(str, range(10_001)), "0"), None, "examples[0].label", "10001 classes; 10000 may be learned"),
        (labels("cat", "cat"), None, "examples[0].label", "two classes at least"),
        (labels("cat"), None, "examples[0].label", "two classes at least"),
        (labels("cat", "cat"), ["cat", "dog"], "examples[0].label", "two classes at least"),
        (labels("cat", "dog"), None, "examples[0].label", "one example only"),
        (labels("cat", "cat", "dog", ids=["a", "b", "a"]), None, "examples[2].id", "'a' is given twice"),
    ],
)
def test_what_teaches_nothing_is_refused_by_its_place(given, classes, param, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        numbered(given, classes=classes, label_map={})
    assert caught.value.param == param


def test_a_label_that_the_map_does_not_name_is_refused_as_such():
    with pytest.raises(InvalidRequest, match="'b' is none of the classes of 'label_map'"):
        numbered(labels("a", "b"), classes=None, label_map={"a": "q", "c": "r"})


def test_a_prior_gives_every_class_its_share_and_nothing_else():
    torch.testing.assert_close(shares({"b": 3, "a": 1}, ["a", "b"]), torch.tensor([0.25, 0.75], dtype=torch.float64))
    for prior, message in (
        ({"a": 1}, "'b' has no share"),
        ({"a": 1, "b": 1, "c": 1}, "'c' is no class"),
        ({"c": 1}, "'c' is no class"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            shares(prior, ["a", "b"])
