"""Which sentence to learn a word in: the wording under which the images distinguish the words best."""

from collections.abc import Sequence

import torch
from torch import Tensor


def wordings(aspect: str, subject: str) -> tuple[str, ...]:
    """Multi-MaP's own sentence, and two in the style of the captions that CLIP models are trained on."""
    return f"{subject or 'object'} with a {aspect} of *", "a photo of a *", "a photo of something *"


def information(images: Tensor, words: Tensor, temperature: float) -> float:
    """Mutual information in nats between an image and its word, without labels; from 0 to log(number of words).

    images (n, d) and words (m, d), L2-normalised. It is large where each image points to one word, and the images
    together to many: entropy of the mean of softmax(images @ words.T / temperature) less the mean of its entropies.
    """
    rows = torch.softmax(images @ words.T / temperature, dim=1)
    return float(_entropy(rows.mean(dim=0)) - _entropy(rows).mean())


def clearest(images: Tensor, words: Sequence[Tensor], temperature: float) -> int:
    """The index of the most informative of several encodings (m, d) of the same words; the first on ties."""
    amounts = [information(images, encoded, temperature) for encoded in words]
    return amounts.index(max(amounts))


def _entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(dim=-1)
