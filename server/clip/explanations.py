"""Why a classifier answers as it does: the decision's exact form, what is near, and which patches carried it."""

import asyncio
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from covervlm.server.clip.classifier_file import ClassifierFile
from covervlm.server.clip.classifiers import Classifiers, ranked
from covervlm.server.clip.encoder.batched import BatchedEncoder
from covervlm.server.clip.methods.contracts import Head, Network
from covervlm.server.clip.methods.openbox import OpenBox, in_words
from covervlm.server.clip.tensors import check_embeddings
from covervlm.server.core.caller import Caller
from covervlm.server.core.errors import InvalidRequest


@dataclass(frozen=True)
class Question:
    """label: why this class rather than `against`; by default the likeliest, rather than the likeliest other one.

    words: to say the decision in. neighbours: nearest examples to name. top: classes to tell of.
    """

    label: str | None = None
    against: str | None = None
    words: Sequence[str] = ()
    neighbours: int = 5
    top: int = 5


class Explanations:
    """Called on the event loop."""

    def __init__(self, classifiers: Classifiers, batched: BatchedEncoder) -> None:
        self._classifiers = classifiers
        self._batched = batched

    async def explain(
        self,
        caller: Caller,
        classifier: str,
        *,
        image: Image | None = None,
        row: np.ndarray | None = None,
        **question: Any,
    ) -> dict[str, Any]:
        """JSON on one image, or on an embedding (d,), of which patches are not known. question: of `Question`.

        Raises NotFound, and InvalidRequest for classes that it does not know and words that cannot be read.
        """
        asked = Question(**question)
        file = await self._classifiers.load(caller.owner, classifier)
        words = torch.zeros(0, file.dimensions)
        if asked.words:
            rows, _ = await self._batched.texts(asked.words, owner=caller.owner, param=lambda i: f"words[{i}]")
            words = torch.stack(rows)
        patches = None
        if image is not None:
            [feature] = await self._batched.images([image], caller=caller)
            patches = await self._batched.patches(image, caller=caller)
        else:
            assert row is not None
            [feature] = check_embeddings(torch.from_numpy(row[None].copy()), file.dimensions)
        told, direction = await asyncio.to_thread(_explained, file, feature, words, asked)
        if patches is not None and image is not None:
            tokens, (_, columns) = patches
            values = (tokens @ direction.float()).unflatten(0, (-1, columns))
            box = self._batched.encoder.box(*image.size)
            told["patches"] = {"box": box, "values": [[round(v, 4) for v in line] for line in values.tolist()]}
        return told


def _explained(file: ClassifierFile, row: Tensor, words: Tensor, asked: Question) -> tuple[dict[str, Any], Tensor]:
    """And the decision's direction (d,) of unit length. In a thread; computed in float64."""
    scores = file.scores(row[None])[0]
    label, against = _pair(file.classes, scores, asked)
    feature = row.double()
    evidence = OpenBox().explain(_of_two(file.head, label, against), feature)
    direction = evidence["weights"][0] - evidence["weights"][1]
    constant = float(evidence["offsets"][0] - evidence["offsets"][1])
    if file.offsets is not None:
        constant += float(file.offsets[label].double() - file.offsets[against].double())
    contributions = evidence["contributions"][0] - evidence["contributions"][1]
    told: dict[str, Any] = {
        "label": file.classes[label],
        "against": file.classes[against],
        "difference": float(contributions.sum()) + constant,
        "constant": constant,
        "contributions": contributions.tolist(),
        "region": _region(evidence["states"], float(evidence["distance"])),
        "classes": _classes(file, scores, row, asked.top),
        "examples": 0 if file.examples is None else len(file.examples),
        "neighbours": _neighbours(file, row, asked.neighbours),
        "words": _words(direction, words, asked.words),
        "patches": None,
    }
    return told, direction / direction.norm().clamp_min(torch.finfo(direction.dtype).tiny)


def _pair(classes: Sequence[str], scores: Tensor, asked: Question) -> tuple[int, int]:
    """The numbers of the class that is explained, and of the one it is compared with."""
    chosen: list[int | None] = []
    for param, name in (("label", asked.label), ("against", asked.against)):
        if name is not None and name not in classes:
            message = f"The classifier has no class '{name[:80]}'."
            raise InvalidRequest(message, param=param, code="invalid_value")
        chosen.append(None if name is None else classes.index(name))
    label, against = chosen
    order = scores.argsort(descending=True).tolist()
    if label is None:
        label = next(number for number in order if number != against)
    if against is None:
        against = next(number for number in order if number != label)
    if label == against:
        raise InvalidRequest(
            "'against' is the label itself; name another class.", param="against", code="invalid_value"
        )
    return label, against


def _of_two(head: Head | Network, label: int, against: int) -> Head | Network:
    """The head in float64 with these two classes alone."""
    two = [label, against]
    if isinstance(head, Head):
        return Head(head.proxies[:, two].double(), head.temperature)
    weights, biases = ([layer.double() for layer in layers] for layers in (head.weights, head.biases))
    return Network((*weights[:-1], weights[-1][two]), (*biases[:-1], biases[-1][two]))


def _region(states: Tensor, distance: float) -> dict[str, Any] | None:
    """Where the explanation holds; None for everywhere. The id is alike for all that one region holds."""
    if math.isinf(distance):
        return None
    return {"id": hashlib.sha256(states.numpy().tobytes()).hexdigest()[:16], "distance": distance}


def _classes(file: ClassifierFile, scores: Tensor, row: Tensor, top: int) -> list[dict[str, Any]]:
    alike = [None] * len(file.classes) if file.examples is None else file.examples.similarity(row, len(file.classes))
    probabilities = torch.softmax(scores, dim=0)
    numbers = {name: number for number, name in enumerate(file.classes)}
    return [
        {
            "label": name,
            "probability": probability,
            "score": float(scores[numbers[name]]),
            "similarity": alike[numbers[name]],
        }
        for name, probability in ranked(probabilities[None], file.classes, top)[0]
    ]


def _neighbours(file: ClassifierFile, row: Tensor, count: int) -> list[dict[str, Any]]:
    found = [] if file.examples is None or not count else file.examples.nearest(row, count)
    return [{"id": name, "label": file.classes[label], "similarity": cosine} for name, label, cosine in found]


def _words(direction: Tensor, words: Tensor, names: Sequence[str]) -> dict[str, Any] | None:
    if not names:
        return None
    coefficients, unexplained = in_words(direction, words.double())
    told = [{"word": word, "weight": weight} for word, weight in zip(names, coefficients.tolist(), strict=True)]
    return {"weights": told, "unexplained": float(unexplained)}
