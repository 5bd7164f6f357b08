"""Every registered method with little to do, and examples and pictures that suit all of them."""

from dataclasses import fields, replace
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from covervlm.server.clip.methods import contracts
from covervlm.server.clip.methods.contracts import Examples, Network, Pictures
from covervlm.server.clip.methods.registry import Kind, method_class, method_names

KINDS = {"fit": contracts.Fit, "train": contracts.Fit, "project": contracts.Fit} | {
    "choose": contracts.Method,
    "stream": contracts.Stream,
    "group": contracts.Group,
    "explain": contracts.Explain,
}
EVERY = [(kind, name) for kind in get_args(Kind) for name in method_names(kind)]
every_method = pytest.mark.parametrize(("kind", "name"), EVERY)
every_classifier = pytest.mark.parametrize(("kind", "name"), [m for m in EVERY if m[0] in ("fit", "train")])
every_projection = pytest.mark.parametrize("name", method_names("project"))
every_learner = pytest.mark.parametrize(("kind", "name"), [m for m in EVERY if KINDS[m[0]] is contracts.Fit])
every_explanation = pytest.mark.parametrize("name", method_names("explain"))
every_stream = pytest.mark.parametrize("name", method_names("stream"))
every_group = pytest.mark.parametrize("name", method_names("group"))
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])

CLASSES, DIMENSIONS = 4, 8


def quick(kind: Kind, name: str):
    """The method with as few iterations as show what it does."""
    cls = method_class(kind, name)
    few = {"iterations": 20, "epochs": 3, "rounds": 2, "align_epochs": 2, "cluster_epochs": 1, "dimensions": 5}
    return cls(**{field.name: few[field.name] for field in fields(cls) if field.name in few})


def examples(n: int = 40, dtype: torch.dtype = torch.float32, classes: int = CLASSES) -> Examples:
    """All that any method may need."""
    generator = torch.Generator().manual_seed(n)
    text = normalize(torch.randn(DIMENSIONS, classes, generator=generator), dim=0)
    labels = torch.arange(n) % classes
    views = [
        normalize(text.T[labels] + 0.3 * torch.randn(n, DIMENSIONS, generator=generator), dim=1).to(dtype)
        for _ in range(2)
    ]
    return Examples(views[0], text.to(dtype), labels, labels % 2, views[1])


def of_same_image(given: Examples, times: int) -> Examples:
    """The first example so many times."""
    rows = torch.zeros(times, dtype=torch.int64)
    return chosen(given, rows)


def chosen(given: Examples, rows: Tensor) -> Examples:
    per_image = {name: getattr(given, name)[rows] for name in ("features", "labels", "groups", "second_views")}
    return replace(given, **per_image)


def learned(result) -> dict[str, Tensor]:
    """All tensors of a head or projection."""
    if isinstance(result, Network):
        return {str(i): tensor for i, tensor in enumerate((*result.weights, *result.biases))}
    return {field.name: t for field in fields(result) if isinstance(t := getattr(result, field.name), Tensor)}


class Sentence:
    """Words are directions of the image space."""

    def encode(self, word: Tensor) -> Tensor:
        return normalize(word, dim=1)


def pictures(n: int = 40, dtype: torch.dtype = torch.float32, features: Tensor | None = None) -> Pictures:
    words = one_hot(torch.arange(CLASSES), DIMENSIONS).to(dtype)
    if features is None:
        noise = 0.1 * torch.randn(n, DIMENSIONS, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        features = normalize(words[torch.arange(n) % CLASSES] + noise.to(dtype), dim=1)
    return Pictures(features, torch.eye(DIMENSIONS, dtype=dtype), Sentence(), words.mean(0), words)
