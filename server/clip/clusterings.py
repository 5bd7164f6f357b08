"""Clusterings as jobs: reference words asked for, images encoded, groups found and described."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import normalize

from covervlm.server.asking.words import UnusableWords
from covervlm.server.clip.encoder.batched import BatchedEncoder, image_bytes
from covervlm.server.clip.encoder.encoder import ClipEncoder
from covervlm.server.clip.encoder.prompt_tower import PromptTower
from covervlm.server.clip.methods.contracts import Diverged, Group, Groups, Pictures
from covervlm.server.clip.methods.kmeans import principal_plane, silhouette
from covervlm.server.clip.methods.registry import method_class
from covervlm.server.clip.prompt_choice import clearest, wordings
from covervlm.server.core.caller import Caller
from covervlm.server.core.errors import EngineError, InvalidRequest
from covervlm.server.jobs.runner import JobError, JobRunner, Reporter
from covervlm.server.store.records import JobRecord

_LOOK_UP = 0.2
"""Seconds between two checks whether a job that waits for a language model was cancelled."""


@dataclass(frozen=True)
class ClusteringRequest:
    """What to cluster by. `prompt` ends in `*`, the place of the word; empty takes the clearest of a few wordings."""

    aspect: str
    words: tuple[str, ...]
    subject: str = ""
    prompt: str = ""
    clusters: int | None = None
    method: str = "multi_map"
    seed: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)


class Clusterings:
    """Called on the event loop."""

    def __init__(self, jobs: JobRunner, batched: BatchedEncoder) -> None:
        self._jobs = jobs
        self._batched = batched

    async def start(
        self,
        caller: Caller,
        images: Sequence[Image],
        ask_words: Callable[[], Coroutine[Any, Any, Sequence[str]]] | None,
        **request: Any,
    ) -> JobRecord:
        """Start a job; `request` is what ClusteringRequest takes, `ask_words` is given where it has no words."""
        wanted, encoder = ClusteringRequest(**request), self._batched.encoder
        towers = await asyncio.to_thread(_towers, encoder, wanted)
        method: Group = method_class("group", wanted.method)(**wanted.parameters)
        loop = asyncio.get_running_loop()

        def run(report: Reporter) -> dict[str, Any]:
            settled = wanted
            if ask_words is not None:
                report(0.0, phase="asking for reference words")
                settled = replace(wanted, words=_asked(ask_words, loop, report))
            distinct, which = _distinct(images)
            hidden = self._batched.in_batches(encoder.hidden_pixels, distinct, report)
            result = _cluster(encoder, hidden, which, towers, method, settled, report)
            result["words_from"] = "request" if ask_words is None else "model"
            report(1.0, phase="done")
            return result

        return await self._jobs.submit(
            caller, "clustering", lambda _: run, method=wanted.method, size=image_bytes(images)
        )


def _asked(
    words: Callable[[], Coroutine[Any, Any, Sequence[str]]], loop: asyncio.AbstractEventLoop, report: Reporter
) -> tuple[str, ...]:
    """In a job's thread: reference words from a language model. Raises JobError, or Cancelled before it answered."""
    advice = "give 'words' in the request"
    answer = asyncio.run_coroutine_threadsafe(words(), loop)
    try:
        while not wait([answer], timeout=_LOOK_UP).done:
            report.check()
        return tuple(answer.result())
    except UnusableWords as error:
        raise JobError("unusable_words", f"The model's list of words cannot be used: {error}; {advice}.") from None
    except EngineError as error:
        raise JobError("no_words", f"The model could not be asked for words: {error} You can {advice}.") from None
    finally:
        answer.cancel()


def _distinct(images: Sequence[Image]) -> tuple[list[Image], Tensor]:
    """The distinct pictures, and (n,) int64: which of them each image is; rounding must not tear equal ones apart."""
    found: dict[tuple[Any, ...], int] = {}
    firsts, which = [], []
    for image in images:
        key = image.size, hashlib.sha256(image.tobytes()).digest()
        if key not in found:
            firsts.append(image)
        which.append(found.setdefault(key, len(found)))
    return firsts, torch.tensor(which)


def _cluster(
    encoder: ClipEncoder,
    hidden: Tensor,
    which: Tensor,
    towers: Sequence[PromptTower],
    method: Group,
    request: ClusteringRequest,
    report: Reporter,
) -> dict[str, Any]:
    """The job's result; of a single image it holds only the label and the place in the plot.

    hidden: features of the different pictures. which: (n,) the picture of each image.
    """
    projection = encoder.visual_projection()
    try:
        tower = _clearest(towers, normalize(hidden @ projection.T, dim=1), request.words, encoder.temperature)
        references = tower.words(request.words)
    except ValueError as error:  # words of the request were checked before; these come from a language model
        raise JobError("unusable_words", f"{error}; give 'words' in the request.") from None
    pictures = Pictures(hidden, projection, tower, tower.words([request.aspect])[0], references)

    def progress(share: float, /, **figures: float) -> None:
        report(0.5 + share / 2 * 0.98, phase="learning", **figures)

    count = request.clusters and min(request.clusters, len(hidden))
    try:
        groups = method.group(pictures, count, seed=request.seed, progress=progress)
    except Diverged as error:
        raise JobError("diverged", f"{str(error).capitalize()}.") from None
    found = _of_images(groups, which)
    clusters = _clusters(found, request.words)
    return {
        "labels": found.labels.tolist(),
        "clusters": clusters,
        "projection": [[round(float(x), 5) for x in row] for row in principal_plane(found.points)],
        "silhouette": round(silhouette(found.points, found.labels), 4) if len(clusters) > 1 else None,
        "warnings": list(_remarks(len(hidden), len(which), len(clusters), request.clusters)),
        **{k: v for k, v in asdict(request).items() if k not in ("clusters", "parameters")},
        "prompt": tower.prompt,
    }


def _of_images(found: Groups, which: Tensor) -> Groups:
    """The groups of all images from those of the distinct pictures, numbered again by falling size."""
    labels = found.labels[which]
    order = torch.bincount(labels).argsort(descending=True, stable=True)
    return Groups(found.points[which], found.words[which], order.argsort()[labels])


def _remarks(different: int, images: int, found: int, asked: int | None) -> Iterator[str]:
    if different == 1 and images > 1:
        yield "All images are equal, so there is one cluster, and no silhouette."
    elif different < images:
        yield f"Only {different} of the {images} images are different; equal ones are in one cluster and count once."
    if asked is not None and found < asked:
        yield f"{asked} clusters were asked for, and there are {found}: the images do not form more."


def _towers(encoder: ClipEncoder, request: ClusteringRequest) -> list[PromptTower]:
    """The text tower for the request's prompt, or for each wording. Raises InvalidRequest for text that makes none."""
    prompts = [request.prompt] if request.prompt else wordings(request.aspect, request.subject)
    with _refusing("prompt" if request.prompt else "subject" if request.subject else "aspect"):
        towers = [encoder.prompt_tower(prompt) for prompt in prompts]
    with _refusing("aspect"):
        towers[0].words([request.aspect])
    for i, word in enumerate(request.words):
        with _refusing(f"words[{i}]"):
            towers[0].words([word])
    return towers


@contextmanager
def _refusing(param: str) -> Iterator[None]:
    """Turns a ValueError into an InvalidRequest that names the field."""
    try:
        yield
    except ValueError as error:
        raise InvalidRequest(f"Invalid '{param}': {error}.", param=param, code="invalid_value") from None


def _clearest(towers: Sequence[PromptTower], images: Tensor, words: Sequence[str], temperature: float) -> PromptTower:
    """The tower whose wording suits images, words and model best."""
    if len(towers) == 1:
        return towers[0]
    with torch.no_grad():
        encoded = [tower.encode(tower.words(words)) for tower in towers]
    return towers[clearest(images, encoded, temperature)]


def _clusters(found: Groups, words: Sequence[str]) -> list[dict[str, Any]]:
    """Each cluster's name, size and proxy, the mean of its points. Names are the commonest reference words."""
    taken: Counter[str] = Counter()
    described = []
    for label in range(int(found.labels.max()) + 1):
        members = found.labels == label
        word = words[Counter(found.words[members].tolist()).most_common(1)[0][0]]
        taken[word] += 1
        name = word if taken[word] == 1 else f"{word} ({taken[word]})"
        proxy = found.points[members].mean(dim=0)
        described.append({"name": name, "size": int(members.sum()), "proxy": [round(float(x), 6) for x in proxy]})
    return described
