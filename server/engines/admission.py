"""From a waiting job to a prompt that can be prefilled: tower, selection, assembly."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from covervlm.server.engines.base import PromptReport
from covervlm.server.engines.feature_cache import FeatureCache
from covervlm.server.engines.selection import Selector, guiding_text
from covervlm.server.engines.sequence import Job
from covervlm.server.models.base import Adapter, AssembledPrompt, ImageTokens

log = logging.getLogger(__name__)

Encoded = ImageTokens | Exception


@dataclass(frozen=True, eq=False)
class Prepared:
    """A job whose prompt is assembled. token_limit: how many tokens may be generated."""

    job: Job
    prompt: AssembledPrompt
    report: PromptReport
    token_limit: int


class Admission:
    """Prepares jobs; called by the thread that owns the model."""

    def __init__(self, adapter: Adapter, cache: FeatureCache) -> None:
        self._adapter = adapter
        self._cache = cache
        self._selector = Selector()

    def encode(self, jobs: Sequence[Job]) -> None:
        """Give every job its images' tower outputs, each image encoded once however many jobs ask about it."""
        started = time.perf_counter()
        known: dict[str, Encoded] = {}
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

    def prepare(self, job: Job) -> Prepared:
        """Select and assemble; raises InvalidRequest where the prompt does not fit, or what the tower raised."""
        request = job.request
        started = time.perf_counter()
        if job.fault is not None:
            raise job.fault
        images = [job.images[key] for key in job.keys]
        text = None
        if images and request.pruning.prunes and job.pruner.uses_text:
            text = self._adapter.question_embeddings(guiding_text(request))
        seed = request.sampling.seed or 0
        kept, reports = self._selector.select(request.pruning, job.pruner, images, text, seed)
        job.seconds["selection"] = time.perf_counter() - started
        prompt = self._adapter.assemble(job.prompt, kept)
        report = PromptReport(
            prompt_tokens=len(prompt),
            images=tuple(reports),
            seconds=job.seconds,
            cached_images=len(job.keys) - len(job.pixels),
        )
        limit = request.token_limit(len(prompt), self._adapter.context_length) if job.generates else 0
        return Prepared(job, prompt, report, limit)

    def _run_tower(
        self, inputs: Mapping[str, Mapping[str, Any]], attention: bool
    ) -> dict[str, ImageTokens | Exception]:
        """Tower outputs by key; images that fail together are tried alone, and if that fails too, the exception."""
        encoded: dict[str, ImageTokens | Exception] = {}
        batches = [list(inputs)] if inputs else []
        while batches:
            keys = batches.pop()
            try:
                images = self._adapter.encode([inputs[key] for key in keys], cls_attention=attention)
            except Exception as error:
                log.warning("the vision tower failed on %d images: %r", len(keys), error)
                if len(keys) > 1:
                    batches += [[key] for key in keys]
                else:
                    encoded[keys[0]] = error
                continue
            for key, image in zip(keys, images, strict=True):
                encoded[key] = image
                self._cache.put(key, image)
        return encoded
