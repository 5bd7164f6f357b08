"""A classifier as a file: a head over named classes in one model's space."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from covervlm.server.clip.encoder.templates import check_class_names
from covervlm.server.clip.kept_examples import KeptExamples, take_examples, without_examples
from covervlm.server.clip.methods.contracts import Head, Network
from covervlm.server.clip.tensors import BadTensors, pack, unpack

_LARGEST = 1e30
"""Of a score that a unit feature could get; beyond, float32 has no room for sums."""


@dataclass(frozen=True, eq=False)
class ClassifierFile:
    """fingerprint: of the model whose embeddings it classifies. about: how it was made, for people.

    offsets: (K,) or None, what a prior adds to the head's scores. examples: those that it remembers, if any.
    """

    classes: list[str]
    head: Head | Network
    fingerprint: str
    offsets: Tensor | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    examples: KeptExamples | None = None

    def scores(self, features: Tensor) -> Tensor:
        """(n, K) whose softmax are the classes' probabilities, from unit features (n, d)."""
        scores = self.head.logits(features)
        return scores if self.offsets is None else scores + self.offsets

    @property
    def dimensions(self) -> int:
        return self.head.proxies.shape[0] if isinstance(self.head, Head) else self.head.weights[0].shape[1]

    def description(self) -> dict[str, Any]:
        """All but the tensors."""
        own: dict[str, Any] = {"classes": self.classes, "fingerprint": self.fingerprint, "dimensions": self.dimensions}
        if isinstance(self.head, Head):
            own["temperature"] = self.head.temperature
        if self.examples is not None:
            own["kept_examples"] = len(self.examples)
        return {**self.about, **own}

    def pack(self) -> bytes:
        tensors = {} if self.offsets is None else {"offsets": self.offsets}
        if isinstance(self.head, Head):
            tensors["proxies"] = self.head.proxies
        else:
            for number, (weights, biases) in enumerate(zip(self.head.weights, self.head.biases, strict=True)):
                tensors |= {f"weights.{number}": weights, f"biases.{number}": biases}
        if self.examples is not None:
            tensors |= self.examples.tensors()
        # The report stays with the server: with many classes it is longer than a file's header may be.
        return pack(tensors, {name: value for name, value in self.description().items() if name != "report"})


def sharpened(head: Head | Network, temperature: float) -> Head | Network:
    """The head with its logits divided by `temperature`."""
    if isinstance(head, Head):
        return replace(head, temperature=head.temperature * temperature)
    *weights, last = head.weights
    *biases, bias = head.biases
    return Network((*weights, last / temperature), (*biases, bias / temperature))


def on_cpu(head: Head | Network) -> Head | Network:
    if isinstance(head, Head):
        return replace(head, proxies=head.proxies.cpu())
    return Network(*(tuple(layer.cpu() for layer in layers) for layers in (head.weights, head.biases)))


def read_classifier(data: bytes) -> ClassifierFile:
    """The classifier in a file that `pack` made. Raises BadTensors for anything else."""
    tensors, about = unpack(data)
    classes, temperature, fingerprint = (about.pop(name, None) for name in ("classes", "temperature", "fingerprint"))
    about.pop("dimensions", None)
    about.pop("kept_examples", None)
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    every = tensors
    tensors = {name: tensor.float() for name, tensor in without_examples(tensors).items()}
    offsets = tensors.pop("offsets", None)
    whole = named and isinstance(fingerprint, str)
    head = _read_head(tensors, temperature) if whole else None
    if head is None or not isinstance(classes, list) or not isinstance(fingerprint, str):
        raise BadTensors(
            "This file is not a classifier made by this server: it lacks proxies, class names or the name of its model."
        )
    answered = head.proxies.shape[1] if isinstance(head, Head) else len(head.weights[-1])
    if answered != len(classes) or (offsets is not None and offsets.shape != (answered,)):
        raise BadTensors(f"The file's head has {answered} classes, but {len(classes)} are named.")
    try:
        check_class_names(classes)
    except ValueError as error:
        raise BadTensors(f"The classifier's classes cannot be used: {error}.") from None
    largest = _largest(head) + (0.0 if offsets is None else float(offsets.abs().max()))
    if not largest < _LARGEST:
        raise BadTensors("The classifier's head holds NaN or infinity, or its scores are out of bounds.")
    file = ClassifierFile(classes, head, fingerprint, offsets, about)
    return replace(file, examples=take_examples(every, dimensions=file.dimensions, classes=len(classes)))


def _read_head(tensors: Mapping[str, Tensor], temperature: Any) -> Head | Network | None:
    """None where the tensors make none. Raises BadTensors for a temperature out of bounds."""
    if set(tensors) == {"proxies"}:
        if tensors["proxies"].ndim != 2 or not tensors["proxies"].numel():
            return None
        if not isinstance(temperature, int | float) or not 1e-6 <= temperature < 1e6:
            raise BadTensors("The classifier's temperature is missing or out of bounds (0.000001 to 1,000,000).")
        return Head(tensors["proxies"], float(temperature))
    count = len(tensors) // 2
    names = [(f"weights.{number}", f"biases.{number}") for number in range(count)]
    if not count or set(tensors) != {name for pair in names for name in pair}:
        return None
    weights, biases = (tuple(tensors[pair[i]] for pair in names) for i in (0, 1))
    width = None
    for weight, bias in zip(weights, biases, strict=True):
        fits = weight.ndim == 2 and weight.numel() and bias.shape == weight.shape[:1]
        if not fits or width not in (None, weight.shape[1]):
            return None
        width = weight.shape[0]
    return Network(weights, biases)


def _largest(head: Head | Network) -> float:
    """A bound on what unit features become on their way to scores; NaN or infinite where a tensor is."""
    if isinstance(head, Head):
        return float(head.proxies.double().norm(dim=0).max()) / min(head.temperature, 1.0)
    bounds = [torch.ones((), dtype=torch.float64)]
    for weight, bias in zip(head.weights, head.biases, strict=True):
        bounds.append(bounds[-1] * weight.double().norm() + bias.double().norm())
    return float(torch.stack(bounds).max())
