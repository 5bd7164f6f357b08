"""One answer while it is decoded: its tokens become text, chunks, and in the end a reason to finish."""

import math

import numpy as np
from torch import Tensor

from covervlm.server.core.generation import FinishReason, GenerationChunk
from covervlm.server.engines.detokenizer import Detokenizer
from covervlm.server.engines.embedded.admission import Job
from covervlm.server.engines.embedded.grammar import Constraint
from covervlm.server.engines.embedded.prefix_cache import Read
from covervlm.server.engines.embedded.sampling import Sampler, token_logprob
from covervlm.server.models.base import Adapter


class RunningAnswer:
    """One choice of one request: a row of the running batch. Used by the engine's thread alone."""

    def __init__(self, job: Job, choice: int, adapter: Adapter) -> None:
        sampling = job.request.sampling
        self.job = job
        self.position = int(job.positions[0, -1])
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._choice = choice
        self._sampling = sampling
        self.constraint = None
        if sampling.grammar is not None and job.grammar is not None:
            self.constraint = Constraint(sampling.grammar, job.grammar)
        self._remaining = job.token_limit
        self._end_ids = frozenset(sampling.stop_token_ids)
        if self.constraint is not None or not sampling.ignore_eos:  # the end of a grammar is part of it
            self._end_ids |= adapter.eos_ids
        self.sampler = None
        if not sampling.is_plain_argmax:
            self.sampler = Sampler(sampling, job.ids, choice, end_ids=self._end_ids, banned=job.banned)
        self._tokenizer = adapter.tokenizer
        self._detokenizer = Detokenizer(
            self._tokenizer,
            sampling.stop,
            min_tokens=sampling.min_tokens,
            include_stop=sampling.include_stop_str_in_output,
            specials=not sampling.skip_special_tokens,
        )

    @property
    def last_token(self) -> int:
        return self.tokens[-1]

    @property
    def read(self) -> Read:
        """What the model has read (`Job.read`): the prompt, and the answer but for its last token."""
        return np.concatenate([self.job.read, np.array(self.tokens[:-1], np.int64)])

    @property
    def live(self) -> bool:
        return self.finish_reason is None and not self.job.cancelled

    def advance(self, logits: Tensor, token: int | Exception, highest: float) -> GenerationChunk:
        """Go on by the next token, and return the chunk that it makes.

        logits: (V,) float32, with -inf where the grammar allows nothing; highest: of these logits. token: what was
        chosen, or why nothing could be, which is raised. Raises FloatingPointError where the logits are not finite, and
        EngineError where the grammar fails.
        """
        if self.constraint is not None:
            self.constraint.check()
        if not math.isfinite(highest):
            raise FloatingPointError
        if isinstance(token, Exception):
            raise token
        self.tokens.append(token)
        self._remaining -= 1
        sampling = self._sampling
        ended = token in self._end_ids
        shown = not ended or sampling.include_stop_str_in_output
        logprob = token_logprob(logits, token, sampling, self._tokenizer) if sampling.logprobs else None
        text = self._detokenizer.feed(token, logprob) if shown else ""
        if self.constraint is not None and not ended:
            self.constraint.take(token)
            ended = self.constraint.complete
        if ended or self._detokenizer.stopped:
            self.finish_reason = "stop"
        elif self._remaining == 0:
            self.finish_reason = "length"
        if self.finish_reason and not self._detokenizer.stopped:
            text += self._detokenizer.flush()
        logprobs = self._detokenizer.logprobs(ended=self.finish_reason is not None)
        return GenerationChunk(
            self._choice,
            text,
            1,
            logprobs,
            self.finish_reason,
            token_ids=(token,),
            stop_string=self._detokenizer.stopped,
        )
