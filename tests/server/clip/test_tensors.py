"""Tensors in files: what strangers wrote into their headers keeps nobody waiting, what this server wrote is read."""

import json
import struct
import time

import pytest
import torch

from covervlm.server.clip.classifier_file import ClassifierFile, read_classifier
from covervlm.server.clip.methods.contracts import Head
from covervlm.server.clip.tensors import BadTensors, unpack


def file(header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
HEADERS = {
    "tensors": lambda: {f"t{i}": EMPTY for i in range(100_000)},
    "lists in the metadata": lambda: {"__metadata__": {"covervlm": '{"classes": [' + "[]," * 2_000_000 + "[]]}"}},
    "escapes in the metadata": lambda: {"__metadata__": {"covervlm": '{"a": "' + "\\u0041" * 2_000_000 + '"}'}},
    "plain metadata": lambda: {"__metadata__": {"covervlm": '{"a": "' + "a" * 30_000_000 + '"}'}},
    "blanks": lambda: b" " * 30_000_000 + b"{}",
    "brackets": lambda: b"[" * 30_000_000,
}


@pytest.mark.usefixtures("spared")
@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_would_keep_others_waiting_is_refused_unread(kind):
    data = file(HEADERS[kind]())
    began = time.thread_time()
    with pytest.raises(BadTensors, match="header holds more"):
        unpack(data)
    assert time.thread_time() - began < 0.15


@pytest.mark.parametrize("name", ["a", "漢" * 30, '"\\' * 15])
def test_ten_thousand_classes_are_read_again(name):
    classes = [f"{name} {number}" for number in range(10_000)]
    proxies = torch.nn.functional.normalize(torch.ones(4, 10_000), dim=0)
    read = read_classifier(ClassifierFile(classes, Head(proxies, 0.01), "x").pack())
    assert read.classes == classes
