"""A classifier as a file: proxies of named classes in one model's space."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.clip.templates import check_class_names
from covervlm.server.clip.tensors import BadTensors, pack, unpack


@dataclass(frozen=True, eq=False)
class ClassifierFile:
    """proxies: (d, K) float32 with normalised columns. temperature: what divides cosines before the softmax.

    fingerprint: of the model whose embeddings it classifies. about: how it was made, for people.
    """

    classes: list[str]
    proxies: Tensor
    temperature: float
    fingerprint: str
    about: Mapping[str, Any] = field(default_factory=dict)

    def description(self) -> dict[str, Any]:
        """All but the tensor."""
        own = {"classes": self.classes, "temperature": self.temperature, "fingerprint": self.fingerprint}
        return {**self.about, **own, "dimensions": self.proxies.shape[0]}

    def pack(self) -> bytes:
        return pack({"proxies": self.proxies}, self.description())


def read_classifier(data: bytes) -> ClassifierFile:
    """The classifier in a file that `pack` made. Raises BadTensors for anything else."""
    tensors, about = unpack(data)
    proxies = tensors.get("proxies")
    classes, temperature, fingerprint = (about.pop(name, None) for name in ("classes", "temperature", "fingerprint"))
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if proxies is None or proxies.ndim != 2 or not named or not isinstance(fingerprint, str):
        raise BadTensors("The file is no classifier of this server: it lacks proxies, classes or the model.")
    if not isinstance(temperature, int | float) or not 0 < temperature < 1e6:
        raise BadTensors("The classifier's temperature is missing or not positive.")
    if proxies.shape[1] != len(classes):
        raise BadTensors(f"The file holds {proxies.shape[1]} proxies for {len(classes)} classes.")
    try:
        check_class_names(classes)
    except ValueError as error:
        raise BadTensors(f"The classifier's classes cannot be used: {error}.") from None
    proxies = proxies.float()
    lengths = proxies.norm(dim=0)
    if not bool(lengths.isfinite().all()) or not bool((lengths > 0).all()):
        raise BadTensors("The classifier's proxies hold NaN or infinity, or are zero.")
    if bool(((lengths - 1).abs() > 1e-5).any()):
        proxies = normalize(proxies, dim=0)
    return ClassifierFile(classes, proxies, float(temperature), fingerprint, about)
