"""Clusters of images by the aspect that a user names: the methods by name, and what is said of the result."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.clip.clusters import choose_clusters, kmeans, principal_plane, silhouette
from covervlm.server.clip.prompt_tower import PromptTower
from covervlm.server.clip.proxies import Progress, multi_map, multi_sub, nearest_words
from covervlm.server.clip.wording import clearest, wordings

Method = Literal["multi_map", "multi_sub", "clip_kmeans"]


@dataclass(frozen=True)
class ClusteringRequest:
    """What to cluster by. `prompt` ends in `*`, the place of the word; empty takes the clearest of a few wordings."""

    aspect: str
    words: tuple[str, ...]
    subject: str = ""
    prompt: str = ""
    clusters: int | None = None
    method: Method = "multi_map"
    seed: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)


def cluster(
    hidden: Tensor,
    projection: Tensor,
    request: ClusteringRequest,
    prompt_tower: Callable[[str], PromptTower],
    progress: Progress,
    *,
    temperature: float,
) -> dict[str, Any]:
    """Cluster images: hidden (n, d_v) vision features before `projection` (d, d_v). Returns the job's result.

    temperature: by which the model's cosines become probabilities.

    It holds nothing of a single image but its label and its place in the plot.
    """
    images = normalize(hidden @ projection.T, dim=1)
    tower = _tower(images, request, prompt_tower, temperature)
    references = tower.words(request.words)
    if request.method == "multi_map":
        concept = tower.words([request.aspect])[0]
        fitted = multi_map(images, tower, concept, references, progress=progress, **request.parameters)
        points, nearest = fitted.points, fitted.words
    elif request.method == "multi_sub":
        parameters: dict[str, Any] = {"seed": request.seed, **request.parameters}
        fitted = multi_sub(hidden, projection, tower, references, progress=progress, **parameters)
        points, nearest = fitted.points, fitted.words
    else:
        points, nearest = images, nearest_words(images, tower, references)
    count = request.clusters or choose_clusters(points, seed=request.seed)
    # Learned points are grouped by word already; k-means from random starts may find another aspect's groups in them.
    groups = None if request.method == "clip_kmeans" else nearest
    labels = kmeans(points, count, groups=groups, seed=request.seed)
    return {
        "labels": labels.tolist(),
        "clusters": _clusters(points, labels, nearest, request.words),
        "projection": [[round(float(x), 5) for x in row] for row in principal_plane(points)],
        "silhouette": round(silhouette(points, labels), 4) if count > 1 else None,
        **{k: v for k, v in asdict(request).items() if k not in ("clusters", "parameters")},
        "prompt": tower.prompt,
    }


def _tower(
    images: Tensor, request: ClusteringRequest, prompt_tower: Callable[[str], PromptTower], temperature: float
) -> PromptTower:
    """The text tower for the request's prompt, or for the wording that suits images, words and model best."""
    if request.prompt:
        return prompt_tower(request.prompt)
    towers = [prompt_tower(prompt) for prompt in wordings(request.aspect, request.subject)]
    with torch.no_grad():
        encoded = [tower.encode(tower.words(request.words)) for tower in towers]
    return towers[clearest(images, encoded, temperature)]


def _clusters(points: Tensor, labels: Tensor, nearest: Tensor, words: Sequence[str]) -> list[dict[str, Any]]:
    """Each cluster's name, size and proxy, the mean of its points. Names are the commonest reference words."""
    taken: Counter[str] = Counter()
    described = []
    for label in range(int(labels.max()) + 1):
        members = labels == label
        commonest = Counter(nearest[members].tolist()).most_common(1)
        word = words[commonest[0][0]] if commonest else "empty"
        taken[word] += 1
        name = word if taken[word] == 1 else f"{word} ({taken[word]})"
        proxy = points[members].mean(dim=0) if bool(members.any()) else torch.zeros(points.shape[1])
        described.append({"name": name, "size": int(members.sum()), "proxy": [round(float(x), 6) for x in proxy]})
    return described
