"""Classifiers as files: what was packed is read, and nothing that could not answer."""

import pytest
import torch

from covervlm.server.clip.classifier_file import ClassifierFile, read_classifier, sharpened
from covervlm.server.clip.methods.contracts import Head, Network
from covervlm.server.clip.tensors import BadTensors, pack

CLASSES = ["a", "b", "c"]
FEATURES = torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), dim=1)


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


HEADS = {
    "proxies of any length": Head(7 * rows(4, 3), 0.5),
    "a network": Network((rows(6, 4), rows(3, 6)), (rows(6), rows(3))),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("offsets", [None, torch.tensor([0.0, -1.0, 2.0])], ids=["plain", "prior"])
def test_what_is_packed_answers_the_same_when_read(head, offsets):
    file = ClassifierFile(CLASSES, head, "model", offsets, {"method": "linear", "report": {}})
    read = read_classifier(file.pack())
    assert torch.equal(read.scores(FEATURES), file.scores(FEATURES))
    assert (read.classes, read.fingerprint, read.dimensions, read.about) == (CLASSES, "model", 4, {"method": "linear"})
    expected = head.logits(FEATURES) + (0 if offsets is None else offsets)
    torch.testing.assert_close(read.scores(FEATURES), expected)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_head_is_sharpened_by_dividing_its_logits(head):
    torch.testing.assert_close(sharpened(head, 0.25).logits(FEATURES), head.logits(FEATURES) * 4)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"proxies": rows(4, 2)}, "head has 2 classes, but 3"),
        ({"proxies": rows(4)}, "lacks proxies"),
        ({"proxies": rows(4, 3), "more": rows(1)}, "lacks proxies"),
        ({"proxies": rows(4, 3) * float("nan")}, "NaN"),
        ({"proxies": rows(4, 3) * 1e38}, "out of bounds"),
        ({"proxies": rows(4, 3), "offsets": rows(2)}, "head has 3 classes"),
        ({"proxies": rows(4, 3), "offsets": rows(3) / 0}, "infinity"),
        ({"weights.0": rows(3, 4)}, "lacks proxies"),
        ({"weights.0": rows(3, 4), "biases.0": rows(2)}, "lacks proxies"),
        ({"weights.0": rows(6, 4), "biases.0": rows(6), "weights.1": rows(3, 5), "biases.1": rows(3)}, "lacks"),
        ({"weights.0": rows(3, 4) * 1e38, "biases.0": rows(3)}, "out of bounds"),
        (
            {
                "weights.0": rows(5, 4) * 1e35,
                "biases.0": rows(5),
                "weights.1": rows(3, 5) * 1e-35,
                "biases.1": rows(3),
            },
            "out of bounds",
        ),
    ],
)
def test_tensors_that_make_no_classifier_are_refused(tensors, message):
    about = {"classes": CLASSES, "fingerprint": "model", "temperature": 1.0}
    with pytest.raises(BadTensors, match=message):
        read_classifier(pack(tensors, about))


def test_a_network_needs_no_temperature_and_a_head_does():
    about = {"classes": CLASSES, "fingerprint": "model"}
    read_classifier(pack({"weights.0": rows(3, 4), "biases.0": rows(3)}, about))
    with pytest.raises(BadTensors, match="temperature"):
        read_classifier(pack({"proxies": rows(4, 3)}, about))
