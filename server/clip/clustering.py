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

Method = Literal["multi_map", "multi_sub", "clip_kmeans"]


@dataclass(frozen=True)
class ClusteringRequest:
    """What to cluster by. `prompt` ends in `*`, the place of the word; empty takes the papers' wording."""

    aspect: str
    words: tuple[str, ...]
    subject: str = ""
    prompt: str = ""
    clusters: int | None = None
    method: Method = "multi_map"
    seed: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def full_prompt(self) -> str:
        return self.prompt or f"{self.subject or 'object'} with a {self.aspect} of *"


def cluster(
    hidden: Tensor,
    projection: Tensor,
    request: ClusteringRequest,
    prompt_tower: Callable[[str], PromptTower],
    progress: Progress,
) -> dict[str, Any]:
    """Cluster images: hidden (n, d_v) vision features before `projection` (d, d_v). Returns the job's result.

    It holds nothing of a single image but its label and its place in the plot.
    """
    images = normalize(hidden @ projection.T, dim=1)
    tower = prompt_tower(request.full_prompt)
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
    labels = kmeans(points, count, seed=request.seed)
    return {
        "labels": labels.tolist(),
        "clusters": _clusters(points, labels, nearest, request.words),
        "projection": [[round(float(x), 5) for x in row] for row in principal_plane(points)],
        "silhouette": round(silhouette(points, labels), 4) if count > 1 else None,
        **{k: v for k, v in asdict(request).items() if k not in ("clusters", "parameters")},
        "prompt": request.full_prompt,
    }


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
