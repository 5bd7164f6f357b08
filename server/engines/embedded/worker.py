"""The thread that owns the model: jobs join, answers grow by one token a step, and both may leave at any step."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from covervlm.server.core.errors import EngineError, EngineUnavailable
from covervlm.server.core.fairness import FairQueue
from covervlm.server.core.generation import GenerationChunk
from covervlm.server.engines.embedded.admission import Admission, Job
from covervlm.server.engines.embedded.grammar import Grammars, Masks
from covervlm.server.engines.embedded.prefix_cache import PrefixCache
from covervlm.server.engines.embedded.runner import Runner
from covervlm.server.engines.embedded.running_answer import RunningAnswer
from covervlm.server.engines.embedded.sampling import choose
from covervlm.server.engines.embedded.scoring import Scorer, Scoring, Scorings
from covervlm.server.engines.embedded.seats import Seats
from covervlm.server.engines.embedded.step_limits import StepLimits
from covervlm.server.engines.faults import casts_doubt, for_caller
from covervlm.server.models.base import Adapter
from covervlm.server.selection.clip_relevance import ClipRelevance
from covervlm.server.selection.feature_cache import FeatureCache, UntouchedCache

log = logging.getLogger(__name__)


class Worker(threading.Thread):
    """Iteration-level batching.

    A job waits, is prepared (tower, selection), is prefilled, and then runs. `limits` bounds how long running answers
    pause for newcomers, max_running the answers decoded together. Waiting jobs are taken in turn from their owners,
    once all that were taken before are prefilled: the first token of one comes before the image of the next.

    A request that fails takes only itself along, a failing decoding step the answers that were running. After a failure
    that no request explains, the model is probed; if it does not answer, the thread ends. `on_end` is called as its
    last act, whatever ended it.

    Answers are scored while nothing else is there to do, `arriving` requests included; draining does not wait for that.
    """

    def __init__(
        self,
        adapter: Adapter,
        runner: Runner,
        cache: FeatureCache,
        grammars: Grammars,
        prefixes: PrefixCache,
        *,
        max_running: int,
        limits: StepLimits,
        clip: ClipRelevance | None = None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name="covervlm-engine", daemon=True)
        self._adapter = adapter
        self.admission = Admission(adapter, cache, grammars, clip)
        self._prefixes = prefixes
        self._masks = Masks(adapter.vocabulary_size, adapter.eos_ids)
        self._runner = runner
        untouched = Admission(adapter, UntouchedCache(cache), grammars, clip)
        self._scorings = Scorings(Scorer(adapter, untouched, runner, limits.piece).steps)
        # A GPU's memory is short, and all of it is for those who wait.
        self._keeps_scoring = adapter.embeddings.weight.device.type == "cpu"
        self._arriving = 0
        self._seats = Seats(max_running, limits)
        self._limits = limits
        self._on_end = on_end
        self._waiting: FairQueue[Job] = FairQueue()
        self._prepared: list[Job] = []
        self._answers: list[RunningAnswer] = []
        self._wake = threading.Condition()
        self._draining = self._abandoned = False
        self._in_doubt = False

    @property
    def running(self) -> int:
        return len(self._answers)

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._prepared)

    def waiting_of(self, owner: str) -> int:
        """How many of the waiting jobs are this owner's."""
        with self._wake:
            return self._waiting.count(owner) + sum(job.request.caller.owner == owner for job in self._prepared)

    def submit(self, job: Job) -> None:
        """Queue a job; its events follow through `job.emit`."""
        with self._wake:
            if self._draining:
                raise EngineUnavailable("The server is shutting down; send the request to another replica.")
            self._waiting.push(job.request.caller.owner, job)
            self._wake.notify()

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """A request is on its way: nothing is scored while this context is open."""
        with self._wake:
            self._arriving += 1
        try:
            yield
        finally:
            with self._wake:
                self._arriving -= 1
                self._wake.notify()

    def score(self, scoring: Scoring) -> None:
        """Queue an answer to score. Raises EngineUnavailable."""
        with self._wake:
            if self._draining:
                raise EngineUnavailable("The server is shutting down; send the request to another replica.")
            self._scorings.add(scoring)
            self._wake.notify()

    def drain(self) -> None:
        """Finish what is queued and running, then end the thread."""
        with self._wake:
            self._draining = True
            self._wake.notify()

    def abandon(self) -> None:
        """End the thread after its present step, whatever is queued and running."""
        with self._wake:
            self._draining = self._abandoned = True
            self._wake.notify()

    @torch.inference_mode()
    def run(self) -> None:
        try:
            while self._await_work():
                if self._has_work():
                    self._step()
                else:
                    self._score_on()
                if self._in_doubt:
                    self._in_doubt = False
                    self._runner.probe()
        except BaseException:
            log.critical("the engine has ended; the server is not ready any more and needs a restart", exc_info=True)
        finally:
            self._masks.close()
            with self._wake:
                self._draining = True
            self._scorings.close()
            if not self._abandoned:
                self._on_end()

    def _step(self) -> None:
        try:
            if not self._keeps_scoring:
                self._scorings.begin_anew()
            self._drop_dead()
            self._admit()
            self._prefill()
            self._decode()
        except Exception as error:
            log.exception("engine step failed; the running requests are lost, the engine goes on")
            self._abandon_running(error)

    def _score_on(self) -> None:
        error = self._scorings.step()
        if error is not None and not isinstance(error, EngineError):
            log.warning("an answer could not be scored", exc_info=error)
            self._in_doubt |= casts_doubt(error)

    def _await_work(self) -> bool:
        """Block until there is something to do; False once drained."""
        with self._wake:
            self._wake.wait_for(lambda: self._has_work() or self._draining or self._may_score())
            return not self._abandoned and (self._has_work() or self._may_score())

    def _may_score(self) -> bool:
        return bool(self._scorings) and not self._arriving and not self._draining

    def _has_work(self) -> bool:
        return bool(self._waiting or self._prepared or self._answers)

    def _drop_dead(self) -> None:
        with self._wake:
            self._waiting.discard(lambda job: job.cancelled)
        self._prepared = [job for job in self._prepared if not job.cancelled]
        for row, answer in enumerate(self._answers):
            if answer.finish_reason is not None:
                self._remember(row, answer)
        live = [row for row, answer in enumerate(self._answers) if answer.live]
        if len(live) < len(self._answers):
            self._answers = [self._answers[row] for row in live]
            self._runner.keep(live)

    def _remember(self, row: int, answer: RunningAnswer) -> None:
        """Keep what was made of a finished answer's prompt, for the next turn of its chat."""
        owner, read = answer.job.request.caller.owner, answer.read
        try:
            if self._prefixes.capacity and not self._prefixes.knows(owner, read):
                self._prefixes.put(owner, read, self._runner.read(row))
        except Exception as error:
            log.warning("a prompt could not be kept for the next turn of its chat: %r", error)

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
        with self._wake:
            jobs = self._seats.take(self._waiting, (answer.job for answer in self._answers))
        try:
            for job in jobs:
                job.seconds["queue"] = time.perf_counter() - job.queued_at
            self.admission.encode(jobs)
        except Exception as error:
            for job in jobs:
                self._fail(job, error)
            return
        for job in jobs:
            try:
                self.admission.prepare(job)
            except Exception as error:
                self._fail(job, error)
                continue
            if job.generates:
                self._prepared.append(job)
            else:
                job.emit(job, job.report)

    def _prefill(self) -> None:
        """Read the prompts of one group of prepared jobs; those that fail together are tried alone."""
        opened = [(job, answers) for job in self._next_group() if (answers := self._open_answers(job))]
        groups = [opened] if opened else []
        while groups:
            group = groups.pop(0)
            started = time.perf_counter()
            try:
                known = group[0][0].prefix
                start = 0 if known is None else known.length
                prompts = [(job.embeddings[start:], job.positions[:, start:-1]) for job, _ in group]
                scored = any(job.request.sampling.prompt_logprobs is not None for job, _ in group)
                repeats = [len(answers) for _, answers in group]
                logits, hidden = self._runner.prefill(prompts, repeats, known, states=scored)
            except Exception as error:
                if len(group) == 1:
                    self._fail(group[0][0], error)
                else:
                    log.warning("prefill of %d prompts failed, each is tried alone: %r", len(group), error)
                    groups = [[member] for member in group]
                continue
            for (job, _), states in zip(group, hidden, strict=True):
                job.prefix = None  # holds memory
                self._score(job, states)
            self._join(group, logits, time.perf_counter() - started)

    def _score(self, job: Job, hidden: Tensor) -> None:
        """Of a prompt just read, with hidden states (T, d), the log probabilities that its caller wants."""
        top = job.request.sampling.prompt_logprobs
        if top is None or job.cancelled:
            return
        try:
            job.scores = self._runner.scores(hidden, job.report.token_ids, top)
        except Exception as error:
            self._fail(job, error)

    def _join(self, group: Sequence[tuple[Job, list[RunningAnswer]]], logits: Tensor, seconds: float) -> None:
        """Tell the callers of prompts just read what became of them, and choose their first tokens."""
        for job, _ in group:
            job.seconds["prefill"] = seconds
            if not job.cancelled:
                job.emit(job, GenerationChunk(prompt=job.report))
        joined = [answer for _, answers in group for answer in answers]
        self._answers += joined
        barriers = self._barriers_of(joined)
        counts = torch.tensor([len(answers) for _, answers in group], device=logits.device)
        self._advance(joined, barriers, logits.repeat_interleave(counts, dim=0))

    def _next_group(self) -> list[Job]:
        """The prepared job that came first, and others that fit into a step beside it once padded.

        One whose prompt was read before for the most part is alone.
        """
        group: list[Job] = []
        longest = 0
        for job in self._prepared:
            self._recall(job)
            if group and (job.prefix or group[0].prefix):
                break
            longest = max(longest, len(job.embeddings))
            if group and longest * (len(group) + 1) > self._limits.prompt_tokens:
                break
            group.append(job)
        self._prepared = self._prepared[len(group) :]
        return group

    def _recall(self, job: Job) -> None:
        """Find what of a prompt was read before, unless its caller wants to know how likely all of it is."""
        if job.request.sampling.prompt_logprobs is None:
            job.prefix = self._prefixes.find(job.request.caller.owner, job.read)
        if job.prefix is not None:
            job.report = replace(job.report, cached_tokens=job.prefix.length)

    def _open_answers(self, job: Job) -> list[RunningAnswer]:
        """The job's choices, ready to run; none if its sampling parameters turn out to be unusable."""
        try:
            return [RunningAnswer(job, choice, self._adapter) for choice in range(job.request.sampling.n)]
        except Exception as error:
            self._fail(job, error)
            return []

    # Decoding: one token for every running answer.

    def _decode(self) -> None:
        self._drop_dead()
        if not self._answers:
            return
        answers = self._answers
        barriers = self._barriers_of(answers)
        logits = self._runner.decode([a.last_token for a in answers], [a.position for a in answers])
        for answer in answers:
            answer.position += 1
        self._advance(answers, barriers, logits)

    def _barriers_of(self, answers: Sequence[RunningAnswer]) -> "Future[Tensor] | None":
        """What the grammars of those answers that have one rule out; worked out while the model runs."""
        constraints = [answer.constraint for answer in answers if answer.constraint is not None]
        return self._masks.begin(constraints) if constraints else None

    def _advance(self, answers: Sequence[RunningAnswer], barriers: "Future[Tensor] | None", logits: Tensor) -> None:
        """Choose every answer's next token by its row of logits; one that fails takes only its own request with it."""
        if barriers is not None:
            held = [row for row, answer in enumerate(answers) if answer.constraint is not None]
            for row, barrier in zip(held, barriers.result().to(logits.device), strict=True):
                logits[row] += barrier  # `index_add_` takes a CPU ten times as long
        argmaxes = logits.argmax(-1)
        highest = logits.gather(-1, argmaxes[:, None])[:, 0].tolist()
        samplers = {
            row: answer.sampler
            for row, answer in enumerate(answers)
            if answer.sampler is not None and answer.live and math.isfinite(highest[row])
        }
        chosen = dict(enumerate(argmaxes.tolist())) | choose(samplers, logits)
        for row, answer in enumerate(answers):
            if not answer.live:
                continue
            try:
                chunk = answer.advance(logits[row], chosen[row], highest[row])
            except Exception as error:
                self._fail(answer.job, error)
            else:
                answer.job.emit(answer.job, chunk)
