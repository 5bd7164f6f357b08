"""Owners' named classifiers: learned in a job, uploaded, used, downloaded, deleted."""

import asyncio
import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from covervlm.server.clip.choice import BASELINES, Candidate, candidates, choose
from covervlm.server.clip.classifier_file import ClassifierFile, on_cpu, read_classifier, sharpened
from covervlm.server.clip.kept_examples import KeptExamples
from covervlm.server.clip.labels import Labels
from covervlm.server.clip.methods.contracts import Diverged, Examples, Fit, Head, Network, Progress
from covervlm.server.clip.methods.registry import method_class
from covervlm.server.clip.named import Named
from covervlm.server.clip.numbered_labels import Numbered, numbered, shares
from covervlm.server.clip.report import report
from covervlm.server.clip.sources import Sources, gathered
from covervlm.server.clip.tensors import BadTensors
from covervlm.server.core.caller import Caller
from covervlm.server.core.errors import Conflict, Damaged, InvalidRequest
from covervlm.server.jobs.runner import JobError, Reporter, Work
from covervlm.server.store.records import JobRecord

log = logging.getLogger(__name__)

Learn = Callable[[Examples, Progress], ClassifierFile]
"""From features and the classes' text."""

MOST_SCORES = 2**29
"""Images times classes of one fit, which takes four bytes for each: 2 GiB."""


Probabilities = Literal["softmax", "sigmoid"]
"""Shares of 1 that the classes of an image compete for, or the probability of each class by itself."""


class Classifiers(Named):
    """Called on the event loop."""

    kind = "classifier"

    async def fit(
        self,
        caller: Caller,
        name: str,
        *,
        templates: Sequence[str],
        classes: Sequence[str] | None = None,
        images: Sequence[Image] = (),
        rows: np.ndarray | None = None,
        embeddings: bytes | None = None,
        uploads: Sequence[str] = (),
        labels: Labels | None = None,
        label_map: Mapping[str, str] | None = None,
        prior: Mapping[str, float] | None = None,
        parameters: Mapping[str, Any],
        method: str = "inmap",
        seed: int = 0,
        keep_examples: bool = False,
    ) -> JobRecord:
        """Start a job that learns a classifier from images or embeddings. Nothing of them is written to disk, unless
        with `keep_examples` the embeddings of up to 5,000 labelled ones.

        Examples come in the order images, rows (n, d), uploads, embeddings. With `labels`, the method is judged on
        held-out examples, by which it also chooses those of its parameters that are not given.
        """
        owner = caller.owner
        await self.check_room(owner)
        sources = await gathered(owner, self._uploads, images=images, rows=rows, uploads=uploads, embeddings=embeddings)
        count = len(sources)
        taught, named = None, classes is not None
        if labels is not None:
            labels.check_count(count)
            taught = await asyncio.to_thread(numbered, labels, classes=classes, label_map=label_map or {})
            classes = taught.classes
        classes = list(classes or ())
        if count * len(classes) > MOST_SCORES:
            message = f"Images times classes may be {MOST_SCORES} at most; learn from fewer images."
            raise InvalidRequest(message, param="images", code="invalid_value")
        try:
            text = await self._batched.class_proxies(owner, classes, templates)
        except InvalidRequest as error:
            if labels is None or taught is None or named:
                raise
            raise _where_it_stands(error, labels, taught) from None
        expected = None if prior is None else shares(prior, classes)
        about = {"classes": classes, "templates": list(templates), "model": self._model, "images": count, "seed": seed}
        if taught is None:
            learner = cast(Fit[Head], method_class("fit", method)(**parameters))
            about |= {"method": method, "parameters": asdict(learner)}
            learn: Learn = functools.partial(self._unlabelled, learner, about)
        else:
            about |= {"label_map": dict(label_map or {}), "prior": None if prior is None else dict(prior)}
            among = candidates(method, parameters)
            learn = functools.partial(self._labelled, among, taught, expected, about, keep_examples)

        def work(job: str) -> Work:
            return functools.partial(self._fit, owner, name, job, learn, text, sources)

        return await self._jobs.submit(caller, self.kind, work, method=method, size=sources.nbytes)

    def _fit(
        self,
        owner: str,
        name: str,
        job: str,
        learn: Learn,
        text: Tensor,
        sources: Sources,
        report: Reporter,
    ) -> None:
        """In the jobs' thread."""
        before = sources.embedded
        features = sources.features(self._batched, report)
        last: dict[str, float] = {}

        def progress(share: float, /, **figures: float) -> None:
            last.update(figures)
            report(before + (1 - before) * 0.99 * share, phase="fitting", **figures)

        device = self._encoder.device
        try:
            file = learn(Examples(features.to(device), text.to(device)), progress)
        except Diverged as error:
            raise JobError("diverged", f"{str(error).capitalize()}.") from None
        report(1.0, phase="done", **last)
        self.keep(owner, name, file.description(), file.pack(), job=job, progress=report.progress)

    def _unlabelled(
        self, learner: Fit[Head], about: Mapping[str, Any], examples: Examples, progress: Progress
    ) -> ClassifierFile:
        last: dict[str, float] = {}

        def told(share: float, /, **figures: float) -> None:
            last.update(figures)
            progress(share, **figures)

        head = learner.fit(examples, progress=told)
        return self._file({**about, **last}, head)

    def _labelled(
        self,
        among: tuple[Candidate, ...],
        taught: Numbered,
        prior: Tensor | None,
        about: Mapping[str, Any],
        keep_examples: bool,
        examples: Examples,
        progress: Progress,
    ) -> ClassifierFile:
        device, seed = examples.features.device, about["seed"]
        groups = None if taught.groups is None else taught.groups.to(device)
        examples = replace(examples, labels=taught.labels.to(device), groups=groups)
        choice = choose(
            examples,
            among,
            beside=BASELINES,
            prior=prior,
            temperature=self._encoder.temperature,
            seed=seed,
            progress=progress,
        )
        best = choice.best
        learner = best.candidate.learner()
        chosen = {
            "method": best.candidate.method,
            "parameters": {} if learner is None else asdict(learner),
            "report": report(choice, taught, examples.features, prior=prior, seed=seed),
        }
        kept = None
        if keep_examples:
            kept = KeptExamples.of(examples.features.cpu(), taught.labels, taught.ids, seed=seed)
        file = self._file({**about, **chosen}, sharpened(choice.head, best.temperature), best.offsets)
        return replace(file, examples=kept)

    def _file(self, about: Mapping[str, Any], head: Head | Network, offsets: Tensor | None = None) -> ClassifierFile:
        offsets = None if offsets is None else offsets.cpu()
        return ClassifierFile(list(about["classes"]), on_cpu(head), self._encoder.fingerprint, offsets, about)

    def _checked(self, data: bytes) -> tuple[Mapping[str, Any], bytes]:
        file = read_classifier(data)
        if file.fingerprint != self._encoder.fingerprint:
            raise BadTensors("The classifier was made with another model than the one served.")
        return file.description(), file.pack()

    async def load(self, owner: str, name: str) -> ClassifierFile:
        """Raises Conflict for a classifier of another model, and Damaged."""
        data = await self.file(owner, name)
        try:
            file = await asyncio.to_thread(read_classifier, data)
        except BadTensors as error:
            log.error("the stored file of a classifier cannot be used: %s", error)
            raise Damaged("classifier", name) from None
        if file.fingerprint != self._encoder.fingerprint:
            message = f"The classifier '{name}' was made with another model than the one served now."
            raise Conflict(message, code="other_model", param="classifier")
        return file

    async def classify(
        self,
        caller: Caller,
        images: Sequence[Image],
        *,
        classes: Sequence[str] | None,
        templates: Sequence[str],
        classifier: str | None,
        top: int,
        probabilities: Probabilities | None = None,
    ) -> tuple[int, Probabilities, list["Answer"], Tensor]:
        """The number of classes, what the probabilities are, the answer to each image, and their embeddings (n, d).

        Without `probabilities` they are the model's own, sigmoids of SigLIP and a softmax else; a classifier's are a
        softmax of its own scores. Raises InvalidRequest for sigmoids where there is no bias for them.
        """
        own: Probabilities = "softmax" if classifier is not None or self._encoder.bias is None else "sigmoid"
        kind = probabilities or own
        if kind == "sigmoid" and own == "softmax":
            of = "a learned classifier" if classifier is not None else "this model"
            message = f"The classes of {of} compete, so they have no sigmoids; leave 'probabilities' out."
            raise InvalidRequest(message, param="probabilities", code="invalid_value")
        if classifier is not None:
            stored = await self.load(caller.owner, classifier)
            names, scores = stored.classes, stored.scores
        else:
            names = list(classes or ())
            proxies = await self._batched.class_proxies(caller.owner, names, templates)
            scores = Head(proxies, self._encoder.temperature).logits
        features = torch.stack(await self._batched.images(images, caller=caller))

        def answer() -> list[Answer]:
            bias = self._encoder.bias or 0.0
            logits = scores(features)
            rows = torch.softmax(logits, dim=1) if kind == "softmax" else torch.sigmoid(logits + bias)
            ahead = rows.topk(2, dim=1).values
            margins = (ahead[:, 0] - ahead[:, 1]).tolist()
            return [Answer(best, margin) for best, margin in zip(ranked(rows, names, top), margins, strict=True)]

        return len(names), kind, await asyncio.to_thread(answer), features


def _where_it_stands(error: InvalidRequest, given: Labels, taught: Numbered) -> InvalidRequest:
    """The error at a class's name, as one at the first label that it comes from; the caller has listed no classes."""
    number = re.fullmatch(r"classes\[(\d+)\]", error.param or "")
    if number is None:
        return error
    rows = (taught.labels == int(number[1])).nonzero().flatten().tolist()
    place = given.place(rows[0], "label") if rows else "label_map"
    return InvalidRequest(str(error), param=place, code=error.code)


@dataclass(frozen=True)
class Answer:
    """An image's likeliest classes with their probabilities, best first, and how far the first is ahead."""

    top: list[tuple[str, float]]
    margin: float


def ranked(probabilities: Tensor, names: Sequence[str], top: int) -> list[list[tuple[str, float]]]:
    """Of each image's probabilities (n, K), the `top` most probable names with theirs, best first."""
    best = probabilities.topk(min(top, len(names)), dim=1)
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [[(names[i], p) for i, p in zip(numbers, values, strict=True)] for numbers, values in rows]
