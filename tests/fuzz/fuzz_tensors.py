"""Uploads: embeddings as .npy or safetensors, classifiers, and snapshots of streams. The first byte says which."""

import json

import torch

from covervlm.server.clip.classifier_file import read_classifier
from covervlm.server.clip.live_session import read_state, write_state
from covervlm.server.clip.methods.contracts import Stream
from covervlm.server.clip.methods.registry import method_class, method_names
from covervlm.server.clip.tensors import BadTensors, read_embeddings, unpack

TRACED = (
    "covervlm.server.clip.tensors",
    "covervlm.server.clip.classifier_file",
    "covervlm.server.clip.live_session",
    "covervlm.server.clip.methods.onzeta",
    "covervlm.server.clip.methods.coke",
    "covervlm.server.clip.encoder.templates",
    "numpy.lib",
    "ast",
    "safetensors",
)
DIMENSIONS = 4
TEXT = torch.eye(DIMENSIONS)[:, :3].contiguous()
STREAMS = {name.encode(): method_class("stream", name)() for name in method_names("stream")}


def target(data: bytes) -> None:
    kind, data = data[:1], data[1:]
    try:
        if kind == b"e":
            embeddings(data)
        elif kind == b"c":
            classifier(data)
        else:
            for name, method in STREAMS.items():
                if kind == name[:1].upper():
                    snapshot(data, method)
    except BadTensors as refused:
        assert str(refused).isprintable()
        assert len(str(refused)) < 1000


def embeddings(data: bytes) -> None:
    rows = read_embeddings(data, DIMENSIONS)
    assert rows.dtype == torch.float32
    assert rows.ndim == 2
    assert rows.shape[1] == DIMENSIONS
    assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-3)


def classifier(data: bytes) -> None:
    file = read_classifier(data)
    json.dumps(file.description(), allow_nan=False).encode()
    again = read_classifier(file.pack())
    assert again.description() == file.description()
    asked = torch.nn.functional.normalize(torch.ones(1, file.dimensions), dim=1)
    scores = file.scores(asked)
    assert scores.shape == (1, len(file.classes))
    assert bool(scores.isfinite().all())
    assert torch.equal(again.scores(asked), scores)


def snapshot(data: bytes, method: Stream) -> None:
    """What is taken goes on with numbers that are numbers."""
    stream = method.open(TEXT, 10)
    state = read_state(method, unpack(data)[0])
    try:
        stream.restore(state)
    except ValueError:
        return
    write_state(stream.snapshot(), {})
    answer = stream.observe(torch.nn.functional.normalize(torch.ones(DIMENSIONS), dim=0))
    for value in vars(answer).values():
        assert not isinstance(value, torch.Tensor) or bool(value.isfinite().all())
