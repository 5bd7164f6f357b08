"""InMaP: proxies for classes learned in image space from unlabelled images and the classes' text embeddings."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.clip.methods.contracts import Diverged, Examples, Fit, Head, Progress


@dataclass(frozen=True)
class InMaP(Fit):
    """Learns proxies in image space from unlabelled images; `tolerance` 0 runs all iterations (arXiv 2310.19752)."""

    sinkhorn: bool = True
    gamma: Annotated[float, Ge(0), Le(1)] = 0.0
    tau_text: Annotated[float, Ge(1e-3), Le(10)] = 0.01
    tau_vision: Annotated[float, Ge(1e-3), Le(10)] = 0.04
    confidence: Annotated[float, Ge(0), Le(1)] = 0.6
    learning_rate: Annotated[float, Gt(0), Le(1000)] = 10.0
    iterations: Annotated[int, Ge(1), Le(100_000)] = 2000
    tolerance: Annotated[float, Ge(0), Le(1)] = 1e-4

    def learn(self, examples: Examples, *, seed: int, progress: Progress) -> Head:
        assert examples.text is not None

        def watch(iteration: int, norm: float) -> None:
            progress(iteration / self.iterations, iteration=iteration, iterations=self.iterations, gradient_norm=norm)

        proxies = fit_vision_proxies(examples.features, examples.text, progress=watch, **asdict(self))
        if not bool(((torch.linalg.vector_norm(proxies, dim=0) - 1).abs() < 1e-3).all()):
            raise Diverged
        return Head(proxies, self.tau_vision)


def sinkhorn_labels(
    logits: Tensor, *, tau_text: float = 0.01, gamma: float = 0.0, iterations: int = 20, in_place: bool = False
) -> Tensor:
    """Soft labels for n images whose class totals follow a prior: uniform, or a flattened share of the predictions.

    logits: (n, K) cosine similarities, float32 or float64. gamma 0 asks for classes of equal size; otherwise class j's
    share is proportional to (sum of its predicted probabilities)^gamma. Returns (n, K), rows summing to 1; `in_place`
    overwrites `logits`, so that no second matrix of this size is made. InMaP (arXiv 2310.19752), section 3.3.
    """
    n, classes = logits.shape
    plan = logits if in_place else logits.clone()
    for rows in plan.split(_rows_in_cache(classes)):
        torch.softmax(rows.div_(tau_text), dim=1, out=rows)
    plan.div_(n)
    share: Tensor | None = None
    if gamma > 0:
        share = plan.sum(dim=0, keepdim=True).pow_(gamma)
        share.div_(share.sum())
    # A class whose every probability underflows to zero stays empty instead of turning all labels into NaN.
    tiny = torch.finfo(plan.dtype).tiny
    for _ in range(iterations):
        totals = plan.sum(dim=0, keepdim=True).clamp_min_(tiny)
        for rows in plan.split(_rows_in_cache(classes)):
            rows.div_(totals)
            if share is None:
                rows.div_(classes)
            else:
                rows.mul_(share)
            rows.div_(rows.sum(dim=1, keepdim=True).clamp_min_(tiny)).div_(n)
    return plan.mul_(n)


def harden_labels(labels: Tensor, threshold: float) -> Tensor:
    """Make rows whose largest entry exceeds `threshold` one-hot, in place; returns `labels`."""
    confidence, best = labels.max(dim=1)
    sure = (confidence > threshold).nonzero().squeeze(1)
    labels[sure] = 0
    labels[sure, best[sure]] = 1
    return labels


def fit_vision_proxies(
    features: Tensor,
    text_proxies: Tensor,
    *,
    sinkhorn: bool = True,
    gamma: float = 0.0,
    tau_text: float = 0.01,
    tau_vision: float = 0.04,
    confidence: float = 0.6,
    sinkhorn_iterations: int = 20,
    learning_rate: float = 10.0,
    iterations: int = 2000,
    tolerance: float = 1e-4,
    batch_size: int | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Tensor:
    """Learn one image-space proxy per class by gradient descent on pseudo-labels, starting from the text proxies.

    features: (n, d), L2-normalised rows. text_proxies: (d, K), L2-normalised columns, K >= 2. Both float32 or float64.
    Returns (d, K) of their dtype with normalised columns on the same device; classify with `features @ proxies`.
    With `sinkhorn` the labels are those of `sinkhorn_labels`, without it the plain softmax. `progress` is called after
    every iteration with its number, from 1, and the gradient's norm; what it raises ends the fit.

    `learning_rate` is halved whenever the gradient's norm grows, so a step only ever gets shorter. The fit ends before
    `iterations` once no column could move by more than `tolerance` even if every iteration left went as far as the
    last one. No score of a unit-length image can then change by more than `tolerance` either. 0 runs all iterations.

    Memory beyond the inputs: one (n, K) matrix until the labels are summed up, then O(batch_size * K + d * K).
    Raises ValueError where the shapes, sizes or values make no fit. InMaP (arXiv 2310.19752), algorithm 1.
    """
    Examples(features, text_proxies)  # checks them
    n, classes = features.shape[0], text_proxies.shape[1]
    batch_size = batch_size or _rows_in_cache(classes)
    labels = features @ text_proxies
    if sinkhorn:
        sinkhorn_labels(labels, tau_text=tau_text, gamma=gamma, iterations=sinkhorn_iterations, in_place=True)
    else:
        torch.softmax(labels.div_(tau_text), dim=1, out=labels)
    # The labels enter the gradient only as this sum over images; the (n, K) matrix is not needed again.
    target = features.T @ harden_labels(labels, confidence)
    del labels

    proxies = text_proxies.clone()
    gradient = torch.empty_like(proxies)
    previous = torch.empty_like(proxies)
    buffer = features.new_empty(min(batch_size, n), classes)
    batches = features.split(batch_size)
    norm = float("inf")
    for iteration in range(1, iterations + 1):
        for start, batch in enumerate(batches):
            scores = torch.mm(batch, proxies, out=buffer[: len(batch)])
            torch.softmax(scores.div_(tau_vision), dim=1, out=scores)
            if start == 0:
                torch.mm(batch.T, scores, out=gradient)
            else:
                gradient.addmm_(batch.T, scores)
        gradient.sub_(target)
        last_norm, norm = norm, float(torch.linalg.vector_norm(gradient))
        if norm > last_norm:
            learning_rate /= 2
        previous.copy_(proxies)
        proxies.sub_(gradient.mul_(learning_rate / (n * tau_vision)))
        proxies = normalize(proxies, dim=0, out=proxies)
        if progress is not None:
            progress(iteration, norm)
        furthest = float(torch.linalg.vector_norm(previous.sub_(proxies), dim=0).max())
        if furthest * (iterations - iteration) <= tolerance and tolerance > 0:
            break
    return proxies


def _rows_in_cache(classes: int) -> int:
    """How many rows of K scores to work on at a time: about 8 MiB, so that passes over them stay in cache."""
    return max(256, 2**21 // classes)
