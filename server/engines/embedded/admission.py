"""From a request to a prompt that can be read: tokens and pixels, then tower, selection and assembly."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher
from torch import Tensor

from covervlm.pruners import Pruner
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import GenerationChunk, GenerationRequest, ImagePart, PromptReport, VideoPart
from covervlm.server.engines.detokenizer import PromptScores
from covervlm.server.engines.embedded.grammar import Grammars
from covervlm.server.engines.embedded.prefix_cache import Prefix, Read, places_of
from covervlm.server.engines.embedded.sampling import bad_words
from covervlm.server.models.base import Adapter, ImageTokens
from covervlm.server.models.pictures import Cost
from covervlm.server.selection.feature_cache import FeatureCache
from covervlm.server.selection.selector import Selector, guiding_text, pruner_for

log = logging.getLogger(__name__)

Event = GenerationChunk | PromptReport | Exception
Emit = Callable[["Job", Event], None]


class Job:
    """One request on its way through the engine.

    pruner, ids, keys, images, pixels are there once it is opened: ids of the prompt; keys of the request's images in
    reading order; tower outputs by key, as far as known; preprocessed inputs by key of the images that no cache held.
    embeddings, positions, report, token_limit follow when it is prepared: what `Adapter.assemble` returns, and how many
    tokens may be generated.

    read, prefix: what stands at each place of the prompt, as `PrefixCache` compares it, and what of it was read before.

    scores: how likely the model finds the prompt's tokens; there once it is read, where the request asks for that.

    grammar, banned: what the answers must look like, compiled, and the tokens of bad words; there once it is opened.

    emit: hands an event to the caller; safe from the engine's thread. Set `cancelled` from any thread to drop the job.
    """

    pruner: Pruner
    ids: Sequence[int]
    keys: Sequence[str]
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

    def __init__(self, adapter: Adapter, cache: FeatureCache, grammars: Grammars) -> None:
        self._adapter = adapter
        self._cache = cache
        self._grammars = grammars
        self._selector = Selector()

    def cost(self, part: ImagePart | VideoPart) -> Cost:
        """What `open` takes for an image that no cache holds. Raises InvalidRequest."""
        return self._adapter.cost(part)

    def open(self, job: Job) -> None:
        """Tokenise, look the images up, and preprocess those that no cache holds. Raises InvalidRequest."""
        adapter, request = self._adapter, job.request
        started = time.perf_counter()
        architecture = adapter.architecture
        job.pruner = pruner_for(request.pruning, architecture.pruner_params, has_cls_token=architecture.has_cls_token)
        job.ids = adapter.tokenize(request.prompt, request.template, request.tools)
        variant = "+cls" if job.pruner.uses_cls_attention else ""
        if job.generates:
            self._open_sampling(job)
        job.keys = [part.digest + variant for part in request.images]
        for key, part in zip(job.keys, request.images, strict=True):
            if key in job.images or key in job.pixels:
                continue
            if (image := self._cache.get(key)) is not None:
                job.images[key] = image
            elif isinstance(part, ImagePart):
                job.pixels[key] = adapter.preprocess(part.image)
            else:
                job.pixels[key] = adapter.preprocess_video(part.frames, part.fps)
        job.queued_at = time.perf_counter()
        job.seconds["preprocess"] = job.queued_at - started

    def _open_sampling(self, job: Job) -> None:
        sampling, adapter = job.request.sampling, self._adapter
        if sampling.grammar is not None:
            job.grammar = self._grammars.compiled(sampling.grammar, job.request.caller.owner)
        job.banned = bad_words(sampling.bad_words, adapter.tokenizer)
        for name, ids in (("logit_bias", sampling.logit_bias), ("stop_token_ids", sampling.stop_token_ids)):
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
        kept, reports = self._selector.select(request.pruning, job.pruner, images, text, request.selection_seed)
        job.seconds["selection"] = time.perf_counter() - started
        job.embeddings, job.positions = adapter.assemble(job.ids, images, kept)
        job.read = _places(job.ids, adapter.chat.slots(job.ids), job.keys, images, kept)
        length = len(job.embeddings)
        cached = len(job.keys) - len(job.pixels)
        ids = adapter.expanded(job.ids, [report.kept for report in reports])
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
    read: list[int] = []
    start = 0
    for slot, key, image, places in zip(slots, keys, images, kept, strict=True):
        read += ids[start:slot]
        read += places_of(key, range(image.layout.total) if places is None else places.tolist())
        start = slot + 1
    return np.array([*read, *ids[start:]], np.int64)
