"""What the transformers engine remembers of a request: the job as it waits, and each answer as it grows."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from covervlm.pruners import Pruner
from covervlm.server.engines.base import (
    FinishReason,
    GenerationChunk,
    GenerationRequest,
    PromptReport,
    SamplingParams,
    TokenLogprob,
)
from covervlm.server.engines.detokenizer import Detokenizer
from covervlm.server.engines.sampling import Sampler
from covervlm.server.models.base import ImageTokens, Prompt

Event = GenerationChunk | PromptReport | Exception
Emit = Callable[["Job", Event], None]


@dataclass(eq=False)
class Job:
    """One request on its way through the engine.

    keys: the cache keys of the request's images, in reading order. images: tower outputs by key, as far as known.
    pixels: preprocessed inputs by key, for the images that no cache held when the request came.
    emit: hands an event to the caller; safe from the engine's thread. Set `cancelled` from any thread to drop the job.
    fault: what the tower raised on one of the images.
    """

    request: GenerationRequest
    prompt: Prompt
    pruner: Pruner
    keys: Sequence[str]
    images: dict[str, ImageTokens]
    pixels: Mapping[str, Mapping[str, Any]]
    emit: Emit
    generates: bool = True
    cancelled: bool = False
    fault: Exception | None = None
    queued_at: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows of the running batch that the job will take."""
        return self.request.sampling.n if self.generates else 0


class Answer:
    """One choice of one request while it is decoded: a row of the running batch."""

    def __init__(
        self,
        job: Job,
        choice: int,
        position: int,
        token_limit: int,
        eos_ids: frozenset[int],
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        sampling = job.request.sampling
        self.job = job
        self.choice = choice
        self.position = position
        self.last_token = -1
        self.finish_reason: FinishReason | None = None
        self.sampler = Sampler(sampling, job.prompt.ids, choice)
        self._sampling = sampling
        self._remaining = token_limit
        self._eos_ids = frozenset() if sampling.ignore_eos else eos_ids
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, sampling.stop)

    @property
    def live(self) -> bool:
        return self.finish_reason is None and not self.job.cancelled

    def advance(self, logits: Tensor, argmax: int, highest: float) -> GenerationChunk:
        """Choose the next token from logits (V,), the highest of which is known, and return the chunk it makes."""
        if not math.isfinite(highest):
            raise FloatingPointError
        token = argmax if self.sampler.is_plain_argmax else self.sampler.sample(logits)
        self.last_token = token
        self._remaining -= 1
        ended = token in self._eos_ids
        text = "" if ended else self._detokenizer.feed(token)
        if ended or self._detokenizer.stopped:
            self.finish_reason = "stop"
        elif self._remaining == 0:
            self.finish_reason = "length"
        if self.finish_reason and not self._detokenizer.stopped:
            text += self._detokenizer.flush()
        logprobs = (_logprob(logits, token, self._sampling, self._tokenizer),) if self._sampling.logprobs else ()
        return GenerationChunk(self.choice, text, tokens=1, logprobs=logprobs, finish_reason=self.finish_reason)


def _logprob(logits: Tensor, token: int, params: SamplingParams, tokenizer: PreTrainedTokenizerBase) -> TokenLogprob:
    """Log probabilities under the model itself, before penalties and temperature, as vLLM reports them."""
    logprobs = logits.log_softmax(-1)

    def entry(index: int, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        text = str(tokenizer.decode([index]))
        return TokenLogprob(text, tuple(text.encode()), float(logprobs[index]), top)

    best = logprobs.topk(min(params.top_logprobs, len(logprobs))).indices.tolist() if params.top_logprobs else []
    return entry(token, tuple(entry(index) for index in best))
