"""From a request to a prompt that can be read: tokens and pixels, then tower, selection and assembly."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
from llguidance import LLMatcher
from torch import Tensor

from covervlm.pruners import Pruner
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import GenerationChunk, GenerationRequest, ImagePart, PromptReport, PruningPolicy
from covervlm.server.engines.detokenizer import PromptScores
from covervlm.server.engines.embedded.grammar import Grammars
from covervlm.server.engines.embedded.prefix_cache import Prefix, Read, places_of
from covervlm.server.engines.embedded.sampling import bad_words
from covervlm.server.models.base import Adapter, ImageTokens, Scaling
from covervlm.server.selection.clip_relevance import ClipRelevance
from covervlm.server.selection.feature_cache import FeatureCache
from covervlm.server.selection.selector import Selector, budget_of, guiding_text, pruner_for

log = logging.getLogger(__name__)

Event = GenerationChunk | PromptReport | Exception
Emit = Callable[["Job", Event], None]


class Job:
    """One request on its way through the engine.

    pruner, ids, keys, scalings, images, pixels are there once it is opened: ids of the prompt; keys of the request's
    images in reading order, and how those are scaled to a budget; tower outputs by key, as far as known; preprocessed
    inputs by key of the images that no cache held. embeddings, positions, report, token_limit follow when it is
    prepared: what `Adapter.assemble` returns, and how many tokens may be generated.

    read, prefix: what stands at each place of the prompt, as `PrefixCache` compares it, and what of it was read before.

    scores: how likely the model finds the prompt's tokens; there once it is read, where the request asks for that.

    text_in_clip: the question as CLIP's text tower has it; there once it is opened, where the method asks for it.

    grammar, banned: what the answers must look like, compiled, and the tokens of bad words; there once it is opened.

    emit: hands an event to the caller; safe from the engine's thread. Set `cancelled` from any thread to drop the job.
    """

    pruner: Pruner
    ids: Sequence[int]
    keys: Sequence[str]
    scalings: Sequence[Scaling | None]
    embeddings: Tensor
    positions: Tensor
    report: PromptReport
    read: Read
    token_limit: int

    def __init__(self, request: GenerationRequest, emit: Emit, *, generates: bool) -> None:
        self.request = request
        self.emit = emit
        self.generates = generates
        self.cancelled = False
        self.prefix: Prefix | None = None
        self.scores: PromptScores | None = None
        self.grammar: LLMatcher | None = None
        self.banned: Sequence[Sequence[int]] = ()
        self.text_in_clip: Tensor | None = None
        self.images: dict[str, ImageTokens] = {}
        self.pixels: dict[str, Mapping[str, Any]] = {}
        self.fault: Exception | None = None
        """What the tower raised on one of the images."""
        self.queued_at = 0.0
        self.seconds: dict[str, float] = {}

    @property
    def rows(self) -> int:
        """Rows of the running batch that the job will take."""
        return self.request.sampling.n if self.generates else 0


class Admission:
    """Opens jobs in any thread; the rest is called by the thread that owns the model."""

    def __init__(
        self, adapter: Adapter, cache: FeatureCache, grammars: Grammars, clip: ClipRelevance | None = None
    ) -> None:
        self._adapter = adapter
        self._clip = clip
        self._cache = cache
        self._grammars = grammars
        self._selector = Selector()

    def open(self, job: Job) -> None:
        """Tokenise, look the images up, and preprocess those that no cache holds. Raises InvalidRequest."""
        started = time.perf_counter()
        for _ in self.opening(job):
            pass
        job.queued_at = time.perf_counter()
        job.seconds["preprocess"] = job.queued_at - started

    def pruner(self, policy: PruningPolicy) -> Pruner:
        """The method that is asked for. Raises InvalidRequest where it cannot do that."""
        architecture = self._adapter.architecture
        return pruner_for(
            policy,
            architecture.pruner_params,
            has_cls_token=architecture.has_cls_token,
            has_clip=self._clip is not None and architecture.has_cls_token,
            scales=architecture.free_resolution,
        )

    def opening(self, job: Job) -> Iterator[None]:
        """The same one by one: the text first, then every image."""
        adapter, request = self._adapter, job.request
        job.pruner = self.pruner(request.pruning)
        job.ids = adapter.tokenize(request.prompt, request.template, request.tools)
        variant = "+cls" if job.pruner.uses_cls_attention else ""
        if job.generates:
            self._open_sampling(job)
        if self._clip is not None and job.pruner.uses_clip and request.images and request.pruning.prunes:
            job.text_in_clip = self._clip.text(guiding_text(request))
        job.scalings = [self._scaling(job, number) for number in range(len(request.images))]
        job.keys = [
            part.digest + ("+{}x{}".format(*scaling.size) if scaling else variant)
            for part, scaling in zip(request.images, job.scalings, strict=True)
        ]
        for key, part, scaling in zip(job.keys, request.images, job.scalings, strict=True):
            yield
            if key in job.images or key in job.pixels:
                continue
            if (image := self._cache.get(key)) is not None:
                job.images[key] = image
            elif scaling is not None:
                job.pixels[key] = adapter.preprocess_scaled(part, scaling)
            elif isinstance(part, ImagePart):
                job.pixels[key] = adapter.preprocess(part.image)
            else:
                job.pixels[key] = adapter.preprocess_video(part.frames, part.fps)

    def _scaling(self, job: Job, number: int) -> Scaling | None:
        """How an image or clip is scaled, where the method does that and the budget is less than all of it."""
        policy, images = job.request.pruning, job.request.images
        if not job.pruner.scales_pictures or not policy.prunes:
            return None
        return self._adapter.scaling(images[number], lambda total: budget_of(policy, number, len(images), total))

    def _open_sampling(self, job: Job) -> None:
        sampling, adapter = job.request.sampling, self._adapter
        if sampling.grammar is not None:
            job.grammar = self._grammars.compiled(sampling.grammar, job.request.caller.owner)
        job.banned = bad_words(sampling.bad_words, adapter.tokenizer)
        for name in ("logit_bias", "stop_token_ids", "allowed_token_ids", "logprob_token_ids"):
            ids: Iterable[int] = getattr(sampling, name)
            if unknown := [token for token in ids if not 0 <= token < adapter.vocabulary_size]:
                raise InvalidRequest(
                    f"There is no token {unknown[0]}: this model has {adapter.vocabulary_size} tokens.",
                    param=name,
                    code="invalid_value",
                )

    def encode(self, jobs: Sequence[Job]) -> None:
        """Give every job its images' tower outputs, each image encoded once however many jobs ask about it."""
        started = time.perf_counter()
        known: dict[str, ImageTokens | Exception] = {}
        missing: dict[str, Job] = {}
        for job in jobs:
            for key in job.pixels:
                if (image := self._cache.peek(key)) is not None:
                    known[key] = image
                else:
                    missing.setdefault(key, job)
        for attention in (False, True):
            inputs = {k: job.pixels[k] for k, job in missing.items() if job.pruner.uses_cls_attention == attention}
            known |= self._run_tower(inputs, attention)
        for job in jobs:
            for key in job.pixels:
                match known[key]:
                    case Exception() as error:
                        job.fault = error
                    case image:
                        job.images[key] = image
            if job.pixels:
                job.seconds["tower"] = time.perf_counter() - started

    def encoding(self, job: Job) -> Iterator[None]:
        """The same for one job, image by image. Raises what the tower raises."""
        for key, pixels in job.pixels.items():
            match self._run_tower({key: pixels}, job.pruner.uses_cls_attention)[key]:
                case Exception() as error:
                    raise error
                case image:
                    job.images[key] = image
            yield

    def prepare(self, job: Job) -> None:
        """Select and assemble; raises InvalidRequest where the prompt does not fit, or what the tower raised."""
        adapter, request = self._adapter, job.request
        started = time.perf_counter()
        if job.fault is not None:
            raise job.fault
        images = [job.images[key] for key in job.keys]
        text = None
        if images and request.pruning.prunes and job.pruner.uses_text:
            text = adapter.question_embeddings(guiding_text(request), request.pruning.recipe)
        cosines = None
        if self._clip is not None and job.text_in_clip is not None and len(job.text_in_clip):
            cosines = partial(self._clip.cosines, text=job.text_in_clip)
        policy = replace(request.pruning, method="none") if job.pruner.scales_pictures else request.pruning
        kept, reports = self._selector.select(policy, job.pruner, images, text, request.selection_seed, cosines=cosines)
        for number, scaling in enumerate(job.scalings):
            if scaling is not None:
                reports[number] = replace(
                    reports[number], total=scaling.total, method=request.pruning.method, coverage=None
                )
        job.seconds["selection"] = time.perf_counter() - started
        order = adapter.chat.as_written(job.ids, request.images)
        keys, images, kept = [job.keys[i] for i in order], [images[i] for i in order], [kept[i] for i in order]
        job.embeddings, job.positions = adapter.assemble(job.ids, images, kept)
        job.read = _places(job.ids, adapter.chat.slots(job.ids), keys, images, kept)
        length = len(job.embeddings)
        cached = len(job.keys) - len(job.pixels)
        counts = [image.layout.counts(places) for image, places in zip(images, kept, strict=True)]
        ids = adapter.expanded(job.ids, list(chain.from_iterable(counts)))
        job.report = PromptReport(length, tuple(reports), job.seconds, cached_images=cached, token_ids=ids)
        job.token_limit = request.token_limit(length, adapter.context_length) if job.generates else 0

    def _run_tower(
        self, inputs: Mapping[str, Mapping[str, Any]], attention: bool
    ) -> dict[str, ImageTokens | Exception]:
        """Tower outputs by key, or the exception; images that fail as a batch are tried one by one first."""
        encoded: dict[str, ImageTokens | Exception] = {}
        batches = [list(inputs)] if inputs else []
        while batches:
            keys = batches.pop()
            try:
                images = self._adapter.encode([inputs[key] for key in keys], cls_attention=attention)
            except Exception as error:
                log.warning("the vision tower failed on a batch of %d images: %r", len(keys), error)
                if len(keys) > 1:
                    batches += [[key] for key in keys]
                else:
                    encoded[keys[0]] = error
                continue
            for key, image in zip(keys, images, strict=True):
                encoded[key] = image
                self._cache.put(key, image)
        return encoded


def _places(
    ids: Sequence[int],
    slots: Sequence[int],
    keys: Sequence[str],
    images: Sequence[ImageTokens],
    kept: Sequence[Tensor | None],
) -> Read:
    """What stands at each place of a prompt with these ids, in which images stand at `slots`."""
    seen: list[Sequence[int]] = []
    for key, image, places in zip(keys, images, kept, strict=True):
        own = iter(places_of(key, range(image.layout.total) if places is None else places.tolist()))
        seen += [list(islice(own, count)) for count in image.layout.counts(places)]
    read: list[int] = []
    start = 0
    for slot, of_slot in zip(slots, seen, strict=True):
        read += [*ids[start:slot], *of_slot]
        start = slot + 1
    return np.array([*read, *ids[start:]], np.int64)
