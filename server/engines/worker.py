"""The thread that owns the model: admits waiting jobs, prefills them, and decodes all running answers step by step."""

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache

from covervlm.server.engines.base import (
    EngineError,
    EngineUnavailable,
    GenerationChunk,
    InvalidRequest,
    PromptReport,
)
from covervlm.server.engines.feature_cache import FeatureCache
from covervlm.server.engines.kv_batch import KVBatch
from covervlm.server.engines.selection import Selector, guiding_text
from covervlm.server.engines.sequence import Answer, Job
from covervlm.server.models.base import Adapter, AssembledPrompt, ImageTokens

log = logging.getLogger(__name__)

_TOWER_BATCH = 8


@dataclass(frozen=True, eq=False)
class Prepared:
    """A job whose prompt is assembled: all that prefill needs."""

    job: Job
    prompt: AssembledPrompt
    report: PromptReport


class Worker(threading.Thread):
    """Iteration-level batching: between two decoding steps jobs may join, finish or be cancelled.

    max_running bounds the answers decoded together; max_prefill_tokens bounds how long running answers wait for one
    round of prefills (a single longer prompt is still taken, alone).
    """

    def __init__(self, adapter: Adapter, cache: FeatureCache, *, max_running: int, max_prefill_tokens: int) -> None:
        super().__init__(name="covervlm-engine", daemon=True)
        self._adapter = adapter
        self._cache = cache
        self._max_running = max_running
        self._max_prefill_tokens = max_prefill_tokens
        self._waiting: deque[Job] = deque()
        self._wake = threading.Condition()
        self._draining = False
        self._selector = Selector()
        self._answers: list[Answer] = []
        self._batch = KVBatch()

    @property
    def running(self) -> int:
        return len(self._answers)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Queue a job; its events follow through `job.emit`."""
        with self._wake:
            if self._draining:
                raise EngineUnavailable("The server is shutting down; send the request to another replica.")
            self._waiting.append(job)
            self._wake.notify()

    def drain(self) -> None:
        """Finish what is queued and running, then end the thread."""
        with self._wake:
            self._draining = True
            self._wake.notify()

    @torch.inference_mode()
    def run(self) -> None:
        while self._await_work():
            try:
                self._drop_dead()
                self._admit()
                if self._answers:
                    self._decode()
            except Exception:
                log.exception("engine step failed; the running requests are lost, the engine goes on")
                self._abandon_running()

    def _await_work(self) -> bool:
        """Block until there is something to do; False once drained."""
        with self._wake:
            self._wake.wait_for(lambda: self._waiting or self._answers or self._draining)
            return bool(self._waiting or self._answers)

    def _drop_dead(self) -> None:
        live = [row for row, answer in enumerate(self._answers) if answer.live]
        if len(live) < len(self._answers):
            self._answers = [self._answers[row] for row in live]
            self._batch.keep(live)

    def _abandon_running(self) -> None:
        error = EngineError("The engine failed while it answered; the request can be sent again.")
        for job in {id(answer.job): answer.job for answer in self._answers}.values():
            job.emit(job, error)
        self._answers, self._batch = [], KVBatch()

    # Admission: waiting jobs become running answers.

    def _admit(self) -> None:
        jobs = self._take()
        try:
            self._start(jobs)
        except Exception as error:
            running = {id(answer.job) for answer in self._answers}
            for job in jobs:
                if id(job) not in running:
                    _fail(job, error)

    def _start(self, jobs: Sequence[Job]) -> None:
        """Encode, select, assemble and prefill; a job that fails on its own account is told so and left out."""
        ready: list[Prepared] = []
        for job in jobs:
            job.seconds["queue"] = time.perf_counter() - job.queued_at
        self._encode_missing(jobs)
        for job in jobs:
            try:
                prompt, report = self._prepare(job)
            except Exception as error:
                _fail(job, error)
                continue
            if job.generates:
                ready.append(Prepared(job, prompt, report))
            else:
                job.emit(job, report)
        for group in _groups(ready, self._max_prefill_tokens):
            try:
                self._prefill(group)
            except Exception as error:
                for entry in group:
                    _fail(entry.job, error)

    def _take(self) -> list[Job]:
        """Waiting jobs, in order, for which there is room."""
        jobs: list[Job] = []
        room = self._max_running - len(self._answers)
        with self._wake:
            while self._waiting and (self._waiting[0].cancelled or self._waiting[0].rows <= room):
                job = self._waiting.popleft()
                if job.cancelled:
                    continue
                room -= job.rows
                jobs.append(job)
        return jobs

    def _encode_missing(self, jobs: Sequence[Job]) -> None:
        """Run the tower once over all images that no job holds yet, however many jobs ask about the same one."""
        started = time.perf_counter()
        known: dict[str, ImageTokens] = {}
        missing: dict[str, Job] = {}
        for job in jobs:
            for key in job.pixels:
                if (image := self._cache.peek(key)) is not None:
                    known[key] = image
                else:
                    missing.setdefault(key, job)
        for attention in (False, True):
            keys = [key for key, job in missing.items() if job.pruner.uses_cls_attention == attention]
            known |= self._encode({key: missing[key].pixels[key] for key in keys}, attention)
        for job in jobs:
            if job.pixels:
                job.images |= {key: known[key] for key in job.pixels if key in known}
                job.seconds["tower"] = time.perf_counter() - started

    def _encode(self, inputs: Mapping[str, Mapping[str, Any]], attention: bool) -> dict[str, ImageTokens]:
        """Tower outputs by key; images that fail in a batch are tried alone, and left out if they fail again."""
        encoded: dict[str, ImageTokens] = {}
        names = list(inputs)
        batches = [names[start : start + _TOWER_BATCH] for start in range(0, len(names), _TOWER_BATCH)]
        while batches:
            keys = batches.pop()
            try:
                images = self._adapter.encode([inputs[key] for key in keys], cls_attention=attention)
            except Exception:
                log.exception("the vision tower failed on %d images", len(keys))
                batches += [[key] for key in keys] if len(keys) > 1 else []
                continue
            for key, image in zip(keys, images, strict=True):
                encoded[key] = image
                self._cache.put(key, image)
        return encoded

    def _prepare(self, job: Job) -> tuple[AssembledPrompt, PromptReport]:
        """Select and assemble; raises InvalidRequest where the prompt does not fit the model."""
        request = job.request
        started = time.perf_counter()
        if any(key not in job.images for key in job.keys):
            raise EngineError("The vision tower failed on an image of this request.")
        images = [job.images[key] for key in job.keys]
        text = None
        if images and request.pruning.prunes and job.pruner.uses_text:
            text = self._adapter.question_embeddings(guiding_text(request))
        kept, reports = self._selector.select(
            request.pruning, job.pruner, images, text, seed=request.sampling.seed or 0
        )
        job.seconds["selection"] = time.perf_counter() - started
        prompt = self._adapter.assemble(job.prompt, kept)
        report = PromptReport(
            prompt_tokens=len(prompt),
            images=tuple(reports),
            seconds=job.seconds,
            cached_images=len(job.keys) - len(job.pixels),
        )
        if job.generates:
            self._token_limit(job, len(prompt))
        return prompt, report

    def _token_limit(self, job: Job, prompt_tokens: int) -> int:
        """How many tokens may be generated; InvalidRequest where prompt and answer exceed the context."""
        asked, context = job.request.sampling.max_tokens, self._adapter.context_length
        if prompt_tokens + (asked or 1) > context:
            wanted = f" and {asked} for the answer" if asked else ""
            raise InvalidRequest(
                f"This model's context is {context} tokens, but the prompt needs {prompt_tokens}{wanted}. "
                "Shorten the messages, lower max_tokens, or keep fewer vision tokens (vision_pruning.keep_tokens).",
                param="messages",
                code="context_length_exceeded",
            )
        return asked or context - prompt_tokens

    def _prefill(self, group: Sequence[Prepared]) -> None:
        """Prefill prompts together, padded on the right, where a causal model never looks; emit their first tokens."""
        started = time.perf_counter()
        prompts = [entry.prompt for entry in group]
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        embeddings = torch.stack([pad(p.embeddings, (0, 0, 0, longest - len(p))) for p in prompts])
        positions = torch.stack([_padded_positions(p.positions, longest) for p in prompts], dim=1)
        cache = DynamicCache()
        hidden = self._adapter.language_model(
            inputs_embeds=embeddings,
            position_ids=positions if self._adapter.position_axes > 1 else positions[0],
            # All ones: padding is harmless, and an absent mask would make transformers look for packed sequences.
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        rows = torch.arange(len(group), device=hidden.device)
        last = hidden[rows, torch.tensor(lengths, device=hidden.device) - 1]
        logits = self._adapter.lm_head(last).float().cpu()
        elapsed = time.perf_counter() - started
        joined: list[tuple[Answer, Tensor]] = []
        repeats = []
        for entry, scores in zip(group, logits, strict=True):
            entry.job.seconds["prefill"] = elapsed
            answers = self._open_answers(entry)
            joined += [(answer, scores) for answer in answers]
            repeats.append(len(answers))
        self._batch.join([_keys_values(layer) for layer in cache.layers], lengths, repeats)
        self._answers += [answer for answer, _ in joined]
        self._advance(joined)

    def _open_answers(self, entry: Prepared) -> list[Answer]:
        """Announce the prompt and make its choices; none if the sampling parameters turn out to be unusable."""
        job, prompt = entry.job, entry.prompt
        try:
            limit = self._token_limit(job, len(prompt))
            answers = [
                Answer(job, choice, prompt.next_position, limit, self._adapter.eos_ids, self._adapter.tokenizer)
                for choice in range(job.request.sampling.n)
            ]
        except Exception as error:
            _fail(job, error)
            return []
        job.emit(job, GenerationChunk(prompt=entry.report))
        return answers

    # Decoding: one token for every running answer.

    def _decode(self) -> None:
        axes = self._adapter.position_axes
        device = self._adapter.embeddings.weight.device
        tokens = torch.tensor([[answer.last_token] for answer in self._answers], device=device)
        positions = torch.tensor([[answer.position] for answer in self._answers], device=device)
        hidden = self._adapter.language_model(
            inputs_embeds=self._adapter.embeddings(tokens),
            position_ids=positions if axes == 1 else positions.expand(axes, -1, -1),
            attention_mask=self._batch.step_mask(),
            past_key_values=self._batch.cache,
            use_cache=True,
        ).last_hidden_state
        logits = self._adapter.lm_head(hidden[:, -1]).float().cpu()
        for answer in self._answers:
            answer.position += 1
        self._advance(list(zip(self._answers, logits, strict=True)))

    def _advance(self, scored: Sequence[tuple[Answer, Tensor]]) -> None:
        """Choose every answer's next token; an answer that fails takes only its own request with it."""
        if not scored:
            return
        argmaxes = torch.stack([scores for _, scores in scored]).argmax(-1).tolist()
        for (answer, scores), argmax in zip(scored, argmaxes, strict=True):
            if not answer.live:
                continue
            try:
                chunk = answer.advance(scores, argmax)
            except Exception as error:
                _fail(answer.job, error)
            else:
                answer.job.emit(answer.job, chunk)


def _fail(job: Job, error: Exception) -> None:
    """Tell the caller and drop the job; what is not written for callers is logged and told in general words."""
    if not isinstance(error, EngineError):
        log.error("request %s failed", job.request.request_id, exc_info=error)
        error = EngineError("The engine failed on this request; if it happens again, report the request id.")
    job.emit(job, error)
    job.cancelled = True


def _keys_values(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.keys, layer.values


def _padded_positions(positions: Tensor, length: int) -> Tensor:
    """Positions (axes, T) continued by ones to (axes, length), so that padding looks like more of the same text."""
    beyond = torch.arange(1, length - positions.shape[1] + 1, device=positions.device)
    return torch.cat([positions, positions[:, -1:] + beyond], dim=1)


def _groups(ready: Sequence[Prepared], max_tokens: int) -> list[list[Prepared]]:
    """Prompts of like length together, each group within max_tokens once padded; a longer prompt goes alone."""
    groups: list[list[Prepared]] = []
    for entry in sorted(ready, key=lambda entry: len(entry.prompt)):
        if groups and (len(groups[-1]) + 1) * len(entry.prompt) <= max_tokens:
            groups[-1].append(entry)
        else:
            groups.append([entry])
    return groups
