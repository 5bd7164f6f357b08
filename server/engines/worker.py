"""The thread that owns the model: jobs join, answers grow by one token a step, and both may leave at any step."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from covervlm.server.engines.admission import Admission, Prepared
from covervlm.server.engines.base import EngineError, EngineUnavailable, GenerationChunk
from covervlm.server.engines.faults import casts_doubt, for_caller
from covervlm.server.engines.feature_cache import FeatureCache
from covervlm.server.engines.model_runner import ModelRunner
from covervlm.server.engines.sequence import Answer, Job
from covervlm.server.fairness import FairQueue
from covervlm.server.models.base import Adapter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepLimits:
    """What is done for newcomers between two decoding steps: images encoded, and prompt tokens read.

    One image, and one prompt, may always be more. Larger batches keep a GPU busy. A CPU is as busy with two images or a
    thousand tokens, so there they would only let the first of them, and all running answers, wait for the last.
    """

    images: int
    prompt_tokens: int

    @classmethod
    def for_device(cls, device: torch.device) -> Self:
        return cls(images=2, prompt_tokens=1024) if device.type == "cpu" else cls(images=8, prompt_tokens=4096)


class Worker(threading.Thread):
    """Iteration-level batching.

    A job waits, is prepared (tower, selection), is prefilled, and then runs. `limits` bounds how long running answers
    pause for newcomers, max_running the answers decoded together. Waiting jobs are taken in turn from their owners,
    once all that were taken before are prefilled: the first token of one comes before the image of the next.

    A request that fails takes only itself along, a failing decoding step the answers that were running. After a failure
    that no request explains, the model is probed; if it does not answer, the thread ends. `on_end` is called as its
    last act, whatever ended it.
    """

    def __init__(
        self,
        adapter: Adapter,
        cache: FeatureCache,
        *,
        max_running: int,
        limits: StepLimits,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name="covervlm-engine", daemon=True)
        self._adapter = adapter
        self._admission = Admission(adapter, cache)
        self._runner = ModelRunner(adapter)
        self._max_running = max_running
        self._limits = limits
        self._on_end = on_end
        self._waiting: FairQueue[Job] = FairQueue()
        self._prepared: list[Prepared] = []
        self._answers: list[Answer] = []
        self._wake = threading.Condition()
        self._draining = False
        self._in_doubt = False

    @property
    def running(self) -> int:
        return len(self._answers)

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._prepared)

    def waiting_of(self, owner: str | None) -> int:
        """How many of the waiting jobs are this owner's."""
        with self._wake:
            return self._waiting.count(owner) + sum(entry.job.request.owner == owner for entry in self._prepared)

    def submit(self, job: Job) -> None:
        """Queue a job; its events follow through `job.emit`."""
        with self._wake:
            if self._draining:
                raise EngineUnavailable("The server is shutting down; send the request to another replica.")
            self._waiting.push(job.request.owner, job)
            self._wake.notify()

    def drain(self) -> None:
        """Finish what is queued and running, then end the thread."""
        with self._wake:
            self._draining = True
            self._wake.notify()

    @torch.inference_mode()
    def run(self) -> None:
        try:
            while self._await_work():
                self._step()
        except BaseException:
            log.critical("the engine has ended; the server is not ready any more and needs a restart", exc_info=True)
        finally:
            with self._wake:
                self._draining = True
            self._on_end()

    def _step(self) -> None:
        try:
            self._drop_dead()
            self._admit()
            self._prefill()
            self._decode()
        except Exception as error:
            log.exception("engine step failed; the running requests are lost, the engine goes on")
            self._abandon_running(error)
        if self._in_doubt:
            self._in_doubt = False
            self._runner.probe()

    def _await_work(self) -> bool:
        """Block until there is something to do; False once drained."""
        with self._wake:
            self._wake.wait_for(lambda: self._has_work() or self._draining)
            return self._has_work()

    def _has_work(self) -> bool:
        return bool(self._waiting or self._prepared or self._answers)

    def _drop_dead(self) -> None:
        with self._wake:
            self._waiting.discard(lambda job: job.cancelled)
        self._prepared = [entry for entry in self._prepared if not entry.job.cancelled]
        live = [row for row, answer in enumerate(self._answers) if answer.live]
        if len(live) < len(self._answers):
            self._answers = [self._answers[row] for row in live]
            self._runner.keep(live)

    def _abandon_running(self, error: Exception) -> None:
        answers, self._answers = self._answers, []
        self._in_doubt |= casts_doubt(error)
        told = for_caller(error)
        if casts_doubt(error):
            told = EngineError("The engine failed while it answered; the request can be sent again.")
        for job in {id(answer.job): answer.job for answer in answers if answer.live}.values():
            self._fail(job, told)
        self._runner.reset()

    def _fail(self, job: Job, error: Exception) -> None:
        """Tell the caller and drop the job; what is not written for callers is logged and told in general words."""
        if not isinstance(error, EngineError):
            log.error("request %s failed", job.request.request_id, exc_info=error)
            self._in_doubt |= casts_doubt(error)
        job.emit(job, for_caller(error))
        job.cancelled = True

    # Joining: waiting jobs are prepared, prepared ones prefilled.

    def _admit(self) -> None:
        if self._prepared:
            return
        jobs = self._take()
        try:
            for job in jobs:
                job.seconds["queue"] = time.perf_counter() - job.queued_at
            self._admission.encode(jobs)
        except Exception as error:
            for job in jobs:
                self._fail(job, error)
            return
        for job in jobs:
            try:
                prepared = self._admission.prepare(job)
            except Exception as error:
                self._fail(job, error)
                continue
            if job.generates:
                self._prepared.append(prepared)
            else:
                job.emit(job, prepared.report)

    def _take(self) -> list[Job]:
        """Waiting jobs, their owners in turn, that the batch has room for and whose images one step may encode."""
        jobs: list[Job] = []
        room = self._max_running - len(self._answers)
        images = 0
        with self._wake:
            while self._waiting:
                job = self._waiting.peek()
                images += len(job.pixels)
                if job.rows > room or (jobs and images > self._limits.images):
                    break
                room -= job.rows
                jobs.append(self._waiting.pop())
        return jobs

    def _prefill(self) -> None:
        """Read the prompts of one group of prepared jobs; those that fail together are tried alone."""
        opened = [(entry, answers) for entry in self._next_group() if (answers := self._open_answers(entry))]
        groups = [opened] if opened else []
        while groups:
            group = groups.pop(0)
            started = time.perf_counter()
            try:
                prompts = [entry.prompt for entry, _ in group]
                logits = self._runner.prefill(prompts, [len(answers) for _, answers in group])
            except Exception as error:
                if len(group) == 1:
                    self._fail(group[0][0].job, error)
                else:
                    log.warning("prefill of %d prompts failed, each is tried alone: %r", len(group), error)
                    groups = [[member] for member in group]
                continue
            self._join(group, logits, time.perf_counter() - started)

    def _join(self, group: Sequence[tuple[Prepared, list[Answer]]], logits: Tensor, seconds: float) -> None:
        """Tell the callers of prompts just read what became of them, and choose their first tokens."""
        for entry, _ in group:
            entry.job.seconds["prefill"] = seconds
            entry.job.emit(entry.job, GenerationChunk(prompt=entry.report))
        joined = [answer for _, answers in group for answer in answers]
        self._answers += joined
        self._advance(joined, logits.repeat_interleave(torch.tensor([len(answers) for _, answers in group]), dim=0))

    def _next_group(self) -> list[Prepared]:
        """The prepared job that came first, and others that fit into a step beside it once padded."""
        group: list[Prepared] = []
        longest = 0
        for entry in self._prepared:
            longest = max(longest, len(entry.prompt))
            if group and longest * (len(group) + 1) > self._limits.prompt_tokens:
                break
            group.append(entry)
        self._prepared = self._prepared[len(group) :]
        return group

    def _open_answers(self, entry: Prepared) -> list[Answer]:
        """The job's choices, ready to run; none if its sampling parameters turn out to be unusable."""
        adapter, position = self._adapter, entry.prompt.next_position
        try:
            return [
                Answer(entry.job, choice, position, entry.token_limit, adapter.eos_ids, adapter.tokenizer)
                for choice in range(entry.job.request.sampling.n)
            ]
        except Exception as error:
            self._fail(entry.job, error)
            return []

    # Decoding: one token for every running answer.

    def _decode(self) -> None:
        self._drop_dead()
        if not self._answers:
            return
        answers = self._answers
        logits = self._runner.decode([a.last_token for a in answers], [a.position for a in answers])
        for answer in answers:
            answer.position += 1
        self._advance(answers, logits)

    def _advance(self, answers: Sequence[Answer], logits: Tensor) -> None:
        """Choose every answer's next token by its row of logits; one that fails takes only its own request with it."""
        argmaxes = logits.argmax(-1)
        highest = logits.gather(-1, argmaxes[:, None])[:, 0].tolist()
        for answer, scores, argmax, value in zip(answers, logits, argmaxes.tolist(), highest, strict=True):
            if not answer.live:
                continue
            try:
                chunk = answer.advance(scores, argmax, value)
            except Exception as error:
                self._fail(answer.job, error)
            else:
                answer.job.emit(answer.job, chunk)
