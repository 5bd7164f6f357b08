"""How likely the model finds an answer that was given: read in small pieces, in the pauses between all other work."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from covervlm.server.core.agreement import AnswerScores
from covervlm.server.core.errors import EngineUnavailable, InvalidRequest
from covervlm.server.core.generation import GenerationRequest
from covervlm.server.engines.detokenizer import PromptScores
from covervlm.server.engines.embedded.admission import Admission, Event, Job
from covervlm.server.engines.embedded.runner import Runner
from covervlm.server.engines.faults import for_caller
from covervlm.server.models.base import Adapter

Steps = Generator[None, None, AnswerScores]


class Scoring:
    """An answer to score. `scores` may be cancelled in any thread, which ends the work at its next step."""

    def __init__(self, request: GenerationRequest, answer: Sequence[int]) -> None:
        """answer: token ids, one at least."""
        self.request = request
        self.answer = tuple(answer)
        self.scores: Future[AnswerScores] = Future()


class Scorings:
    """Answers to score, one after the other; `add` may be called in any thread, the rest in the engine's."""

    def __init__(self, steps: Callable[[Scoring], Steps]) -> None:
        """steps: the work on one of them, which pauses at every yield."""
        self._steps = steps
        self._waiting: deque[Scoring] = deque()
        self._current: tuple[Scoring, Steps] | None = None

    def __bool__(self) -> bool:
        return bool(self._waiting or self._current)

    def add(self, scoring: Scoring) -> None:
        self._waiting.append(scoring)

    def step(self) -> Exception | None:
        """Go on with the first by one step. Returns what it failed with, if it did; its caller is told."""
        if self._current is None:
            if not self._waiting:
                return None
            scoring = self._waiting.popleft()
            self._current = scoring, self._steps(scoring)
        scoring, steps = self._current
        if scoring.scores.cancelled():
            self._current = None
            steps.close()
            return None
        try:
            next(steps)
        except StopIteration as ended:
            self._current = None
            if scoring.scores.set_running_or_notify_cancel():
                scoring.scores.set_result(ended.value)
        except Exception as error:
            self._current = None
            _fail(scoring, for_caller(error))
            return error
        return None

    def begin_anew(self) -> None:
        """Let go of what the first holds; it starts again at the next step."""
        if self._current is not None:
            scoring, steps = self._current
            steps.close()
            self._current = scoring, self._steps(scoring)

    def close(self) -> None:
        """The engine has ended: fail all of them."""
        scorings = [*self._waiting, *([self._current[0]] if self._current else [])]
        self._waiting.clear()
        self._current = None
        for scoring in scorings:
            _fail(scoring, EngineUnavailable("The engine has ended; send the request to another replica."))


class Scorer:
    """The steps of one scoring: what `generate` does up to the prefill, then the answer instead of a decoding.

    A step tokenises, preprocesses or encodes one image, selects, or reads `piece` tokens at most.
    """

    def __init__(self, adapter: Adapter, admission: Admission, runner: Runner, piece: int) -> None:
        """admission: one whose cache it leaves no trace in."""
        self._adapter = adapter
        self._admission = admission
        self._runner = runner
        self._piece = piece

    def steps(self, scoring: Scoring) -> Steps:
        """Raises InvalidRequest where prompt and answer exceed the model's context, and what the model raises."""
        answer, job = scoring.answer, Job(scoring.request, _unheard, generates=False)
        yield from self._admission.opening(job)
        yield from self._admission.encoding(job)
        self._admission.prepare(job)
        self._check_length(len(job.embeddings) + len(answer))
        yield
        embeddings, positions = job.embeddings, job.positions
        del job  # with the images that it holds
        piece, hidden = self._piece, embeddings
        with self._runner.text() as text:
            for start in range(0, len(embeddings), piece):
                part = slice(start, min(start + piece, len(embeddings)))
                hidden = self._runner.read_on(text, embeddings[part], positions[:, part])
                yield
            scores = [self._scores(hidden[-1:], answer[:1])]
            beyond = torch.arange(len(answer), device=positions.device) + positions[:, -1:]
            for start in range(0, len(answer) - 1, piece):
                read = answer[start : min(start + piece, len(answer) - 1)]
                columns = beyond[:, start : start + len(read)]
                hidden = self._runner.read_on(text, self._embedded(read), columns)
                scores.append(self._scores(hidden, answer[start + 1 : start + 1 + len(read)]))
                yield
        return AnswerScores(
            [value for one in scores for value in one.logprobs],
            [tokens[0] for one in scores for tokens in one.top],
            [values[0] for one in scores for values in one.top_logprobs],
        )

    def _embedded(self, ids: Sequence[int]) -> Tensor:
        return self._adapter.embeddings(torch.tensor(ids, device=self._adapter.embeddings.weight.device))

    def _scores(self, hidden: Tensor, tokens: Sequence[int]) -> PromptScores:
        """Of tokens, each after the one with these hidden states (T, d)."""
        return self._runner.scores(hidden, [0, *tokens], 1)

    def _check_length(self, length: int) -> None:
        if length > (most := self._adapter.context_length):
            message = f"Prompt and answer have {length} tokens together, but this model's context is {most}."
            raise InvalidRequest(message, code="context_length_exceeded")


def _fail(scoring: Scoring, error: Exception) -> None:
    if scoring.scores.set_running_or_notify_cancel():
        scoring.scores.set_exception(error)


def _unheard(job: Job, event: Event) -> None:
    """Nobody follows the way of such a job."""
