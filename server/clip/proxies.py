"""Text-guided proxies: one learned word per image, so that images cluster by the aspect that a user names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

Progress = Callable[[float, float], None]
"""Called with the share of the work done, in (0, 1], and the current loss; what it raises ends the fit."""


class WordEncoder(Protocol):
    """A prompt with one free word. `encode` takes (b, d_w) embeddings to (b, d) unit vectors and is differentiable."""

    def encode(self, word: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Proxies:
    """What to cluster and what it says of the words.

    points: (n, p) one row per image. words: (n,) int64, each image's reference word after the fit.
    """

    points: Tensor
    words: Tensor


def nearest_words(images: Tensor, prompt: WordEncoder, references: Tensor) -> Tensor:
    """(n,) int64: the reference word whose prompt lies closest to each image. images (n, d), references (m, d_w)."""
    with torch.no_grad():
        return (images @ prompt.encode(references).T).argmax(dim=1)


def multi_map(
    images: Tensor,
    prompt: WordEncoder,
    concept: Tensor,
    references: Tensor,
    *,
    concept_weight: float = 0.2,
    reference_weight: float = 0.2,
    learning_rate: float = 0.005,
    epochs: int = 20,
    batch_size: int = 128,
    progress: Progress | None = None,
) -> Proxies:
    """Multi-MaP: the word that makes each image's prompt most like the image, held near concept and reference word.

    images: (n, d) float32 unit rows. concept: (d_w,) embedding of the aspect's name. references: (m, d_w) embeddings
    of reference words. Images are independent of each other, so batches change nothing but memory. The points are
    the learned prompts' embeddings (n, d), L2-normalised. Multi-MaP (arXiv 2404.15655), section 3.
    """
    _check(images, references)
    start = nearest_words(images, prompt, references)
    points: list[Tensor] = []
    batches = list(zip(images.split(batch_size), start.split(batch_size), strict=True))
    for done, (batch, chosen) in enumerate(batches):
        anchor = references[chosen]
        word = anchor.clone().requires_grad_(True)
        optimizer = torch.optim.Adagrad([word], lr=learning_rate)
        for epoch in range(epochs):
            apart = 1 - (batch * prompt.encode(word)).sum(dim=1)
            from_concept = (word - concept).square().mean(dim=1)
            from_reference = (word - anchor).square().mean(dim=1)
            loss = (apart + concept_weight * from_concept + reference_weight * from_reference).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if progress is not None:
                progress((done + (epoch + 1) / epochs) / len(batches), float(loss.detach()) / len(batch))
        with torch.no_grad():
            points.append(prompt.encode(word))
    learned = torch.cat(points)
    with torch.no_grad():
        words = (learned @ prompt.encode(references).T).argmax(dim=1)
    return Proxies(learned, words)


def multi_sub(
    hidden: Tensor,
    projection: Tensor,
    prompt: WordEncoder,
    references: Tensor,
    *,
    rounds: int = 4,
    align_epochs: int = 10,
    cluster_epochs: int = 5,
    balance: float = 0.5,
    word_learning_rate: float = 0.05,
    projection_learning_rate: float = 0.03,
    batch_size: int = 128,
    seed: int = 0,
    progress: Progress | None = None,
) -> Proxies:
    """Multi-Sub: words inside the span of the reference words, and a visual projection fitted to them in turns.

    hidden: (n, d_v) float32 vision features before `projection` (d, d_v). references: (m, d_w). An image's word is
    softmax(w Gᵀ) G over the references G, with rows of unit length where they are compared. In turns (I) words and
    projection are aligned by cosine, and (II) with the words held, the projection is refined by a clustering loss
    on [word, image embedding]: `balance` weighs the mean distance within pseudo-clusters against the hinge on
    1 - distance between them; an image's pseudo-label is its nearest reference word. `projection_learning_rate` is
    relative to the root mean square of the projection. The points are [word, image embedding] (n, m + d), both of
    unit length, the word by its coordinates. Multi-Sub (arXiv 2411.03978), section 3.
    """
    _check(hidden, references)
    generator = torch.Generator().manual_seed(seed)
    directions = normalize(references, dim=1)
    matrix = projection.clone().requires_grad_(True)
    with torch.no_grad():
        start = nearest_words(normalize(hidden @ matrix.T, dim=1), prompt, references)
    # Coordinates w Gᵀ are what the word enters by, so they are learned directly, from the nearest word's.
    coordinates = (directions[start] @ directions.T * 4).requires_grad_(True)
    # Adam's steps do not know the size of what they change; checkpoints differ in it by orders of magnitude.
    step = projection_learning_rate * float(projection.square().mean().sqrt())
    align = torch.optim.Adam([{"params": [coordinates], "lr": word_learning_rate}, {"params": [matrix], "lr": step}])
    refine = torch.optim.Adam([matrix], lr=step)
    steps = rounds * (align_epochs + cluster_epochs)
    done = 0
    for _ in range(rounds):
        for epoch in range(align_epochs + cluster_epochs):
            aligning = epoch < align_epochs
            optimizer = align if aligning else refine
            total = 0.0
            for rows in torch.randperm(len(hidden), generator=generator).split(batch_size):
                seen = normalize(hidden[rows] @ matrix.T, dim=1)
                if aligning:
                    word = torch.softmax(coordinates[rows], dim=1) @ references
                    loss = (1 - (seen * prompt.encode(word)).sum(dim=1)).mean()
                else:
                    word = normalize(torch.softmax(coordinates.detach()[rows], dim=1), dim=1)
                    loss = _clustering_loss(torch.cat([word, seen], dim=1), word.argmax(dim=1), balance)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(rows)
            done += 1
            if progress is not None:
                progress(done / steps, total / len(hidden))
    with torch.no_grad():
        word = normalize(torch.softmax(coordinates, dim=1), dim=1)
        seen = normalize(hidden @ matrix.T, dim=1)
        return Proxies(torch.cat([word, seen], dim=1), word.argmax(dim=1))


def _clustering_loss(points: Tensor, labels: Tensor, balance: float) -> Tensor:
    """Mean distance inside clusters against the mean shortfall of distances between them below 1."""
    distances = (points[:, None] - points[None]).square().sum(dim=2).add(1e-8).sqrt()
    same = labels[:, None] == labels[None]
    inside = distances[same].mean()
    between = (1 - distances[~same]).clamp_min(0)
    return balance * inside + (1 - balance) * (between.mean() if len(between) else inside.new_zeros(()))


def _check(images: Tensor, references: Tensor) -> None:
    if images.ndim != 2 or not len(images):
        raise ValueError("at least one image is needed")
    if references.ndim != 2 or len(references) < 2:
        raise ValueError("at least two reference words are needed")
    if not bool(images.isfinite().all()):
        raise ValueError("image features must be finite numbers")
